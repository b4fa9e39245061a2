"""Knows at once that this process is asked to stop.

The server waits for open connections before it runs the lifespan's end, so streams must hear of the signal itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they are done. Once is not enough: `asyncio.wait_for` of Python 3.11, which redis-py sends
    with, loses a cancellation that comes just as it finishes.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.5)
    await asyncio.gather(*tasks, return_exceptions=True)


class Closing:
    """Set once the process was asked to stop; can be awaited."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """True from the signal on."""
        return self._event.is_set()

    def set(self) -> None:
        """Say that the process stops."""
        self._event.set()

    async def wait(self) -> None:
        """Until then."""
        await self._event.wait()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGTERM and SIGINT before the server does, and pass them on. Without effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def hear(number: int, stack: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.set)
            earlier = before[signal.Signals(number)]
            if callable(earlier):
                earlier(number, stack)

        for number in before:
            signal.signal(number, hear)
        try:
            yield
        finally:
            for number, earlier in before.items():
                signal.signal(number, earlier)
