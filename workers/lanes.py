"""The Celery pool: one lane is one thread that waits for one job.

Celery's own threads pool cannot grow or shrink, and does not tell the hub when a thread is free, which then notices
only at its next timer. Here it is told at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, ClassVar

from celery.concurrency.thread import ApplyResult, TaskPool
from celery.worker import state

from tasks.transport import TicketChannel


class LanePool(TaskPool):
    """A threads pool that can change its size and wakes the hub when a lane is free.

    `hub` is this process' event loop. Kombu's `get_event_loop` forgets it when the broker's connection breaks.
    """

    hub: ClassVar[Any] = None

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery's word that its hub is about to run."""
        LanePool.hub = loop

    def on_start(self) -> None:
        """All threads at once: one that begins beside a busy engine takes milliseconds. And tell how many are free."""
        begun = threading.Barrier(self.limit + 1)
        for _ in range(self.limit):
            self.executor.submit(begun.wait)
        begun.wait()
        TicketChannel.lanes = self

    def free(self) -> int:
        """Lanes without a ticket."""
        return int(self.limit) - len(state.reserved_requests)

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        """Run a ticket on a lane."""
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(_wake_hub)
        return result

    def on_stop(self) -> None:
        """Take no more. Lanes are not waited for: the runtime has ended their jobs before, or a hard stop is wanted."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Do nothing: a job is cancelled in the store, and a ticket is not a job."""

    def grow(self, n: int = 1) -> None:
        """More lanes, at once. The engine's places stay as many as they are."""
        self._resize(self.limit + n)

    def shrink(self, n: int = 1) -> None:
        """Fewer lanes; those that work finish first."""
        self._resize(max(1, self.limit - n))

    def _resize(self, lanes: int) -> None:
        self.limit = lanes
        self.executor._max_workers = lanes
        _wake_hub()


def _wake_hub(_done: Future[Any] | None = None) -> None:
    if LanePool.hub is not None:
        LanePool.hub.call_soon(_nothing)


def _nothing() -> None:
    """For the hub to call: what matters is that it woke."""
