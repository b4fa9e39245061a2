"""The storm, short: a whole Penstock, a minute of faults of the quick kinds, and zeros everywhere. `make chaos` is long."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from chaos import drill
from chaos.drill import Bounds, Drill
from chaos.house import Plan
from chaos.report import Run, lines

#: Two of these at once are about what two cores bear while other tests run.
KINDS = ("worker_kill", "worker_drain", "step_error", "kill_writer", "kill_commands", "kill_subscription", "api_kill")
#: No slow readers: they alone would take more than a minute.
MIX = {"stream": 3, "stored": 3, "events": 2, "poll": 1, "whole": 1, "cancel": 1, "disconnect": 1}


def short(folder: Path, *, minutes: float, kinds: tuple[str, ...], breaks: tuple[str, ...] = ()) -> Drill:
    """A small house, a small crowd."""
    plan = Plan(folder, apis=2, fakes=2, demos=0, wing=False, breaks=breaks, settings=drill.KEEP_S)
    seed = random.SystemRandom().randrange(10**6)
    return Drill(
        plan,
        seed,
        minutes,
        "make test",
        kinds,
        clients=16,
        pause_s=(0.2, 1.0),
        poison_every_s=0,
        calm_s=4,
        late_s=4,
        mix=MIX,
        bounds=Bounds(
            crowd=90.0, jobs=60.0, settle=40.0, quiet=20.0
        ),  # what hangs must be told before the test times out
    )


def text(run: Run) -> str:
    """The report, for whoever reads a failure."""
    return "\n".join(lines(run))


@pytest.mark.timeout(300)
async def test_nothing_is_lost_in_a_short_storm(tmp_path: Path) -> None:
    run = await drill.run(short(tmp_path, minutes=0.6, kinds=KINDS))
    assert not run.tally.findings, text(run)
    assert not run.bugs, text(run)
    assert not run.never(), text(run)
    assert run.tally.jobs >= 30, text(run)
    assert run.tally.recoveries, text(run)


@pytest.mark.timeout(300)
async def test_a_planted_bug_turns_it_red(tmp_path: Path) -> None:
    """Answers that begin again after a drain: the short storm must see it."""
    run = await drill.run(short(tmp_path, minutes=0.3, kinds=("worker_drain",), breaks=("restore",)))
    assert set(run.tally.counts()) & {"duplicated", "wrong texts", "wrong ends"}, text(run)
