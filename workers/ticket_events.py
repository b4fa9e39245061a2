"""Celery's events about tickets, which Flower shows: gathered for a moment, then published together.

By itself Celery's hub publishes once for nearly every event, three times a ticket, and waits for Redis each time. Beside
a busy engine that was most of what a ticket cost: a burst filled its lanes three times as slowly.
"""

from __future__ import annotations

from typing import Any

from celery.events.dispatcher import EventDispatcher

from workers.lanes import LanePool

GATHER_S = 0.1  # nobody who looks at Flower notices


class TicketEvents(EventDispatcher):
    """Sends events of tasks at most every `GATHER_S`, from the hub; others at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._due = False
        if self.on_send_buffered is not None:  # the worker's own, whose hub publishes
            self.on_send_buffered = self._gather
            self.buffer_limit = 100_000  # beyond, Celery would publish from a lane

    def extend_buffer(self, other: EventDispatcher) -> None:
        """Take over what another could not send, also what it still gathered."""
        super().extend_buffer(other)  # type: ignore[no-untyped-call]
        for group, events in other._group_buffer.items():
            self._group_buffer[group] += events

    def _gather(self) -> None:
        """An event was added, by any thread; timers are the hub's own."""
        hub = LanePool.hub
        if hub is not None and not self._due:
            self._due = True
            hub.call_soon(hub.call_later, GATHER_S, self._publish_all)

    def _publish_all(self) -> None:
        self._due = False
        self.flush()  # type: ignore[no-untyped-call]
