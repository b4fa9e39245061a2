"""The profile and the card survive a version that knows more."""

from __future__ import annotations

import json

from tasks.profile import ModelProfile, WorkerCard


def test_what_a_newer_version_added_is_left_out() -> None:
    card = WorkerCard("w", "m", "fake", "ready", [], "cpu", 4, 0, "h", 1, 0.0, 0.0)
    newer = json.dumps(json.loads(card.to_json()) | {"colour": "blue"})
    assert WorkerCard.from_json(newer) == card
    profile = ModelProfile("{}", None)
    assert ModelProfile.from_json(json.dumps(json.loads(profile.to_json()) | {"colour": "blue"})) == profile
