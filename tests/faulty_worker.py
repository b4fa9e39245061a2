"""A real worker with one fault planted: `python -m tests.faulty_worker FAULT`, for what no signal from outside can time.

The worker's own code knows nothing of faults: here its parts are replaced before it starts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from celery.__main__ import main as celery


def die() -> None:
    """As by the kernel's out-of-memory killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_claim() -> None:
    """The ticket is taken, no job is claimed."""
    from tasks.ledger import JobLedger

    def claim(*_: Any, **__: Any) -> None:
        die()

    JobLedger.claim = claim  # type: ignore[method-assign, assignment]


def die_after_claim() -> None:
    """The claim was made; its answer never reaches the worker."""
    from tasks.ledger import Claim, JobLedger

    genuine = JobLedger.claim

    def claim(*args: Any, **options: Any) -> Any:
        if isinstance(made := genuine(*args, **options), Claim):
            die()
        return made

    JobLedger.claim = claim  # type: ignore[method-assign]


def out_of_memory_once() -> None:
    """The fortieth forward finds no memory; all before and after it do."""
    from workers.engine.fake import ScriptedBackend

    genuine, forwards = ScriptedBackend.forward, iter(range(10**9))

    def forward(self: ScriptedBackend) -> Any:
        if next(forwards) == 40:
            raise MemoryError("planted")
        return genuine(self)

    ScriptedBackend.forward = forward  # type: ignore[method-assign]


def clock(offset_s: int) -> Callable[[], None]:
    """The machine's clock is wrong by so much."""

    def plant() -> None:
        genuine = time.time
        time.time = lambda: genuine() + offset_s

    return plant


FAULTS: dict[str, Callable[[], None]] = {
    "die-before-claim": die_before_claim,
    "die-after-claim": die_after_claim,
    "out-of-memory-once": out_of_memory_once,
    "clock-ahead": clock(3600),
    "clock-behind": clock(-3600),
}

if __name__ == "__main__":
    FAULTS[sys.argv[1]]()
    sys.argv = ["celery", "-A", "workers.main", "worker"]
    celery()
