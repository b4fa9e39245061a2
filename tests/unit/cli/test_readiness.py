"""What the start says that it waits for."""

from __future__ import annotations

from cli.readiness import Standing
from tasks.profile import WorkerCard


def test_a_model_that_loads_says_how_far_it_is() -> None:
    card = WorkerCard("w", "big", "transformers", "loading", [], "cpu", 4, 0, "h", 1, 0.0, 0.0, progress="weights: 40%")
    standing = Standing(api=True, loading=["small", "big"], cards=[card])
    assert standing.describe() == "small (loading), big (weights: 40%)"
