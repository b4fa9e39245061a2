"""Reads one job's entries: the log first, then the channel, each entry once and in order.

Live entries count only if they continue the last one: the same fence and the next seq. Anything else, a silence, an
overflow or a reconnect sends the reader to the log, which it reads from its own last entry on, that one included. Only
if it is still there, the reader goes on; so two texts are never spliced. A reader ends with the terminal entry or an
error: `JobLost` (no record), `EventsExpired` (it ended, its log is gone), `HistoryLost` (the log went another way).

While a job waits in line its reader asks Redis for nothing: the relay asks for the places of all of them at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from api.lost import EventsExpired, HistoryLost, JobLost
from tasks.errors import StoreDown
from tasks.events import START, End, Entry, EntryId, Started
from tasks.jobs import JobState
from tasks.store import Attached, JobStore

Item = tuple[EntryId, Entry]
Attach = Callable[[str], Awaitable[Attached | None]]
#: Frames that readers of a job share, by the shape of the stream and the entry.
Shared = dict[tuple[str, EntryId], bytes]

#: Live entries that wait for a slow client; beyond, they are dropped and read from the log instead.
QUEUE = 1024
PAGE = 500
#: A silence after which the log and the record are read.
IDLE_S = 2.0
#: Live entries that have waited this long have a slow client, or a process that is too busy.
BEHIND_S = 0.05
#: What a look into the log may take beyond the time that is left, and what it is waited for at most.
MOMENT_S = 0.25
LONGEST_LOOK_S = 1.0
#: How long a reader bears a Redis that is down.
OUTAGE_S = 120.0


class Reader:
    """One client's view of one job. `last` is the last entry given out, `ended` is true after the terminal one.

    `position` is its place in line while it waits, else None. `behind`: the client could not take the last entries at
    once. `shared` is where readers of the job keep the frames of the last message, if there are several.
    """

    def __init__(self, job_id: str, after: EntryId, store: JobStore, attach: Attach) -> None:
        self.job_id = job_id
        self.last = after
        self.ended = False
        self.position: int | None = None
        self.behind = False
        self.shared: Shared | None = None
        self._store = store
        self._attach = attach
        self._pending: deque[Item] = deque()
        self._pending_since = 0.0
        self._overflowed = False
        self._waiter: asyncio.Future[None] | None = None
        self._awake = False
        self._stale = False
        self._check_at = time.monotonic() + IDLE_S
        self._down_since: float | None = None
        self._catching_up: asyncio.Task[list[Item]] | None = None

    def push(self, items: Sequence[Item], shared: Shared | None = None) -> None:
        """Live entries, from the relay."""
        self.shared = shared
        if len(self._pending) + len(items) > QUEUE:
            self._pending.clear()
            self._stale = self._overflowed = True
        else:
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.extend(items)
        self.wake()

    def resync(self) -> None:
        """The channel broke, or nothing was relayed yet: look into the log next."""
        self._stale = True
        self.wake()

    def wake(self) -> None:
        """Let `next` return now, even without entries."""
        self._awake = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def placed(self, position: int | None) -> None:
        """Its place in line, as Redis has it; none for a job that has left it: the log and the record say where to."""
        if self.position is None:  # it has started meanwhile
            return
        self._down_since = None
        if position is None:
            self.resync()
        elif position != self.position:
            self.position = position
            self.wake()

    def unplaced(self) -> None:
        """Redis did not tell the place in line. Borne for a while; then the log is looked into, and that fails."""
        self._down_since = self._down_since or time.monotonic()
        if time.monotonic() - self._down_since > OUTAGE_S:
            self.resync()

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
        now = time.monotonic()
        deadline = now + timeout_s
        items: list[Item] = []
        self.behind = False
        if not self._catching_up:
            if not self._pending and not self._stale and not self._awake:
                await self._woken(min(deadline, self._look_at()) - now)
                now = time.monotonic()
            self._awake = False
            if self._pending:
                self.behind = now - self._pending_since > BEHIND_S
                items = self._take()
            elif now >= self._look_at():
                self._stale = True
        if self._catching_up or (self._stale and not self.ended):
            self.behind |= self._overflowed
            items += await self._caught_up(deadline - time.monotonic())
        if items:
            self._check_at = now + IDLE_S
        return items

    def _look_at(self) -> float:
        """When a silence lasts too long. In line it is the relay that looks, for all readers at once."""
        return math.inf if self.position is not None else self._check_at

    async def _woken(self, timeout_s: float) -> None:
        """A future and a timer: `asyncio.timeout` around an event costs three times as much, for every token."""
        if timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def _caught_up(self, timeout_s: float) -> list[Item]:
        """What `_catch_up` finds, as soon as it has; nothing is taken from the channel before."""
        task = self._catching_up or asyncio.create_task(self._catch_up())
        self._catching_up = task
        try:
            await asyncio.wait([task], timeout=max(MOMENT_S, min(timeout_s, LONGEST_LOOK_S)))
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
        self._check_at = time.monotonic() + IDLE_S
        return self._follow(attached, page)

    def _follow(self, attached: Attached, page: list[Item]) -> list[Item]:
        """What of the log's page is new, if the log still is the one that was read before."""
        more = len(page) == PAGE
        self._overflowed &= more
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
