"""Runs of engines in which something goes wrong, and what must come out of them all the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.contract.engines import Rig, fail_once, outcome
from workers.engine.base import Event, Request

Errors = type[Exception] | tuple[type[Exception], ...]


def run_on(rig: Rig, errors: Errors, *requests: Request) -> dict[str, list[Event]]:
    """Run to the end through every failure with one of these errors."""
    events: dict[str, list[Event]] = {request.rid: [] for request in requests}
    for request in requests:
        rig.engine.submit(request)
    while rig.engine.has_work():
        try:
            of_step = rig.engine.step()
        except errors:
            rig.engine.recover()
            continue
        for event in of_step:
            events[event.rid].append(event)
    return events


def check_crowded(small: Rig, large: Rig) -> None:
    """Eight answers that the small engine's cache cannot hold together are those of the large one."""
    requests = [
        small.request(f"{at}", prompt=[at, *range(40, 90)], max_tokens=60, temperature=at % 2, seed=at)
        for at in range(8)
    ]
    expected = large.run(*requests)
    for rid, events in small.run(*requests).items():
        assert outcome(events) == outcome(expected[rid])


def check_recovery(rig: Rig, requests: Sequence[Request], steps: int) -> None:
    """A step that fails after so many changes no answer."""
    whole = rig.run(*requests)
    for request in requests:
        rig.engine.submit(request)
    events = [event for _ in range(steps) for event in rig.engine.step()]
    fail_once(rig, MemoryError("made to fail"))
    with pytest.raises(MemoryError):
        rig.engine.step()
    rig.engine.recover()
    while rig.engine.has_work():
        events += rig.engine.step()
    for request in requests:
        assert outcome([event for event in events if event.rid == request.rid]) == outcome(whole[request.rid])
