"""Reads one job's entries: the log first, then the channel, each entry once and in order.

Live entries count only if they continue the last one: the same fence and the next seq. Anything else, a silence, an
overflow or a reconnect sends the reader to the log, which it reads from its own last entry on, that one included. Only
if it is still there, the reader goes on; so two texts are never spliced. A reader ends with the terminal entry or an
error: `JobLost` (no record), `EventsExpired` (it ended, its log is gone), `HistoryLost` (the log went another way).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from tasks.errors import ErrorCode, PenstockError, StoreDown
from tasks.events import START, End, Entry, EntryId, Started
from tasks.jobs import JobState
from tasks.store import Attached, JobStore

Item = tuple[EntryId, Entry]

#: Live entries that wait for a slow client; beyond, they are dropped and read from the log instead.
QUEUE = 1024
PAGE = 500
#: A silence after which the log and the record are read; shorter in line, for the position.
IDLE_S = 2.0
IN_LINE_S = 1.0
#: What a look into the log may take beyond the time that is left.
MOMENT_S = 0.25
#: How long a reader bears a Redis that is down.
OUTAGE_S = 120.0


class JobLost(PenstockError):
    """The record is gone while somebody reads: deleted, or lost with Redis' last writes."""

    code = ErrorCode.JOB_LOST


class EventsExpired(PenstockError):
    """The job ended and its log is not kept any more."""

    code = ErrorCode.EVENTS_EXPIRED


class HistoryLost(PenstockError):
    """Redis lost entries that this reader has already given out."""

    code = ErrorCode.HISTORY_LOST


class Reader:
    """One client's view of one job. `last` is the last entry given out, `ended` is true after the terminal one.

    `position` is its place in line while it waits, else None.
    """

    def __init__(
        self,
        job_id: str,
        model: str,
        after: EntryId,
        store: JobStore,
        attach: Callable[[str], Awaitable[Attached | None]],
    ) -> None:
        self.job_id = job_id
        self.last = after
        self.ended = False
        self.position: int | None = None
        self._model = model
        self._store = store
        self._attach = attach
        self._pending: deque[Item] = deque()
        self._wake = asyncio.Event()
        self._stale = False
        self._check_at = time.monotonic() + IN_LINE_S
        self._down_since: float | None = None
        self._catching_up: asyncio.Task[list[Item]] | None = None

    def push(self, items: Sequence[Item]) -> None:
        """Live entries, from the relay."""
        if len(self._pending) + len(items) > QUEUE:
            self._pending.clear()
            self._stale = True
        else:
            self._pending.extend(items)
        self._wake.set()

    def resync(self) -> None:
        """The channel broke, or nothing was relayed yet: look into the log next."""
        self._stale = True
        self._wake.set()

    def rewind(self) -> None:
        """Start over with the first entry of the log as it is now."""
        self.last = START
        self.resync()

    async def attach(self) -> Attached | None:
        """Begin with a job that exists already: relay it, and read its log first. None: there is no such job."""
        attached = await self._attach(self.job_id)
        self.resync()
        return attached

    async def next(self, timeout_s: float) -> list[Item]:
        """The entries that came, possibly none, after at most `timeout_s` seconds and a moment, whatever Redis does."""
        deadline = time.monotonic() + timeout_s
        items: list[Item] = []
        if not self._catching_up:
            if not self._pending and not self._stale:
                await self._woken(min(deadline, self._check_at) - time.monotonic())
            self._wake.clear()
            items = self._take()
            if not items and time.monotonic() >= self._check_at:
                self._stale = True
        if self._catching_up or (self._stale and not self.ended):
            items += await self._caught_up(deadline - time.monotonic())
        if items:
            self._check_at = time.monotonic() + IDLE_S
        return items

    async def _woken(self, timeout_s: float) -> None:
        if timeout_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()

    async def _caught_up(self, timeout_s: float) -> list[Item]:
        """What `_catch_up` finds, as soon as it has; nothing is taken from the channel before."""
        task = self._catching_up or asyncio.create_task(self._catch_up())
        self._catching_up = task
        try:
            await asyncio.wait([task], timeout=max(MOMENT_S, timeout_s))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done():
            return []
        self._catching_up = None
        return task.result()

    def _take(self) -> list[Item]:
        """The pending entries that continue the last one; a gap makes the reader stale."""
        items: list[Item] = []
        while self._pending and not self.ended:
            item = self._pending.popleft()
            at = item[0]
            if at <= self.last:
                continue
            first = self.last == START and at.seq == 1
            if not first and (at.fence != self.last.fence or at.seq != self.last.seq + 1):
                self._pending.clear()
                self._stale = True
                break
            self._accept(item)
            items.append(item)
        return items

    def _accept(self, item: Item) -> None:
        self.last, entry = item
        if isinstance(entry, Started):
            self.position = None
        elif isinstance(entry, End):
            self.ended = True

    async def _catch_up(self) -> list[Item]:
        self._stale = False
        try:
            attached = await self._attach(self.job_id)
            page = await self._store.read(self.job_id, self.last, PAGE) if _may_hold(attached, self.last) else []
            if attached is not None and attached.state is JobState.QUEUED:
                (self.position,) = await self._store.positions([self.job_id])
        except StoreDown:
            await self._bear_outage()
            return []
        self._down_since = None
        if attached is None:
            raise JobLost("the job's record is gone")
        self._check_at = time.monotonic() + (IN_LINE_S if attached.state is JobState.QUEUED else IDLE_S)
        return self._follow(attached, page)

    def _follow(self, attached: Attached, page: list[Item]) -> list[Item]:
        """What of the log's page is new, if the log still is the one that was read before."""
        more = len(page) == PAGE
        if self.last != START:
            if not page or page[0][0] != self.last:
                return self._diverged(attached, page)
            self.ended = isinstance(page[0][1], End)
            page = page[1:]
        elif not page and attached.state.terminal:
            raise EventsExpired("the job ended, and its events are not kept any more")
        for item in page:
            self._accept(item)
        self._stale |= more and not self.ended  # an overflow or a break meanwhile counts, too
        return page

    def _diverged(self, attached: Attached, page: list[Item]) -> list[Item]:
        if not attached.state.terminal and attached.last.seq < self.last.seq:
            return []  # Redis lost its last writes: the worker sends them again
        if attached.state.terminal and not page and attached.last.seq >= self.last.seq:
            raise EventsExpired("the job ended, and its events are not kept any more")
        raise HistoryLost("the store lost a part of this stream that was already sent")

    async def _bear_outage(self) -> None:
        now = time.monotonic()
        self._down_since = self._down_since or now
        self._stale = True
        if now - self._down_since > OUTAGE_S:
            raise StoreDown(f"Redis could not be reached for {OUTAGE_S:.0f} seconds")
        await asyncio.sleep(0.25)


def _may_hold(attached: Attached | None, last: EntryId) -> bool:
    """False for the many jobs that wait in line and have said nothing yet: their logs need not be read."""
    return attached is not None and not (last == START and attached.last.seq == 0)
