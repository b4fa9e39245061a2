"""Simulated time: what happens when, in windows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Clock:
    """Events in the order of their times, then of their making. Nothing can be scheduled before the last window's end."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.now = 0.0
        self._floor = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0

    def at(self, time: float, act: Callable[[Any], None], subject: Any) -> None:
        """Call `act(subject)` at this time, or at the earliest that is left."""
        self._count += 1
        heapq.heappush(self._events, (max(time, self._floor), self._count, act, subject))

    def __bool__(self) -> bool:
        return bool(self._events)

    def play_window(self) -> None:
        """All events of the next window in which there are any; an empty one if there are none at all."""
        first = self._events[0][0] if self._events else self.now
        end = max((math.floor(first / self.window) + 1) * self.window, math.nextafter(first, math.inf))
        while self._events and self._events[0][0] < end:
            self.now, _, act, subject = heapq.heappop(self._events)
            act(subject)
        self.now = self._floor = end
