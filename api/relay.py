"""One Redis subscription per process, many readers: how a job's entries reach those who watch it.

The log is the truth and the channel only the fast path. Promises: a reader gets exactly the entries of the log, in
order, each once, whatever breaks between; or one of the errors of `api.lost`. A job is relayed to this process while
it has a reader here; when the last one leaves, the job is told so, and then it may be cancelled. Once a second the
places of all readers that wait in line are asked for, in one go.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from api.closing import end
from api.reader import Item, Reader, Shared
from tasks.errors import StoreDown
from tasks.events import EntryId, decode
from tasks.keys import key
from tasks.store import Attached, JobStore

log = logging.getLogger("penstock.relay")

#: The channel counts as dead after three silent periods of this length, with a ping after each.
PING_S = 5.0
RETRY_S = 0.2
#: How often the places in line are looked up.
LOOK_S = 1.0
#: How long a request waits for the subscription before it is refused.
SUBSCRIBED_S = 2.0


@dataclass(slots=True)
class _Watch:
    """A job that somebody here reads. The lock keeps attaching and detaching in order."""

    readers: set[Reader] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Relay:
    """Subscribes to this process's channel and hands each entry to the readers of its job."""

    def __init__(self, store: JobStore, connect: Callable[[], redis.asyncio.Redis], api: str, orphan_s: float) -> None:
        self.api = api
        self._store = store
        self._orphan_s = orphan_s
        self._connect = connect
        self._watches: dict[str, _Watch] = {}
        self._subscribed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._puzzled = False

    async def run(self) -> None:
        """Stay subscribed until cancelled; after every break all readers look into their logs."""
        client = self._connect()
        looking = asyncio.create_task(self._look())
        try:
            while True:
                try:
                    await self._listen(client)
                except (RedisError, OSError, RuntimeError) as error:  # the last is uvloop's, of a closed connection
                    if self._subscribed.is_set():
                        log.warning("the relay lost its subscription: %s", error)
                self._subscribed.clear()
                await asyncio.sleep(RETRY_S)
        finally:
            await end(looking)
            await client.aclose()

    async def subscribed(self) -> None:
        """Returns once Redis has confirmed the subscription. Raises `StoreDown` if that takes too long."""
        try:
            async with asyncio.timeout(SUBSCRIBED_S):
                await self._subscribed.wait()
        except TimeoutError:
            raise StoreDown("Redis: the relay is not subscribed") from None

    def open(self, job_id: str, after: EntryId) -> Reader:
        """A reader of the entries that follow `after`. Whoever opens one must `leave` it."""
        reader = Reader(job_id, after, self._store, self._attach)
        self._watches.setdefault(job_id, _Watch()).readers.add(reader)
        return reader

    def wake(self) -> None:
        """Let everybody who waits here look around: the process is asked to stop."""
        for watch in self._watches.values():
            for reader in watch.readers:
                reader.wake()

    def leave(self, reader: Reader, grace_s: float) -> None:
        """Let go of a reader. If it was the job's last one here, the job hears of it; this never waits or fails."""
        watch = self._watches.get(reader.job_id)
        if watch is None or reader not in watch.readers:
            return
        watch.readers.discard(reader)
        if not watch.readers:
            self._start(self._detach(reader.job_id, watch, grace_s))

    def _start(self, leaving: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(leaving)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def close(self, timeout_s: float) -> None:
        """Wait for jobs that are being let go of."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=timeout_s)
        await end(*self._leaving)

    async def _look(self) -> None:
        """Tell all readers in line where they stand, every second."""
        while True:
            await asyncio.sleep(LOOK_S)
            queued = [r for watch in self._watches.values() for r in watch.readers if r.position is not None]
            if not queued:
                continue
            try:
                places = await self._store.positions([reader.job_id for reader in queued])
            except StoreDown:
                for reader in queued:
                    reader.unplaced()
            else:
                for reader, place in zip(queued, places, strict=True):
                    reader.placed(place)

    async def _attach(self, job_id: str) -> Attached | None:
        """Finished even if the reader is cancelled: an attach under way must not overtake the detach that follows."""
        return await asyncio.shield(asyncio.create_task(self._attach_locked(job_id)))

    async def _attach_locked(self, job_id: str) -> Attached | None:
        watch = self._watches.get(job_id)
        if watch is None:  # the reader has left meanwhile, and so has the last one of this job
            return None
        async with watch.lock:
            return await self._store.attach(job_id, self.api)

    async def _detach(self, job_id: str, watch: _Watch, grace_s: float) -> None:
        """Repeated until Redis answers: a job that is watched by nobody must not run on unseen."""
        while True:
            async with watch.lock:
                if watch.readers:
                    return
                with suppress(StoreDown):
                    await self._store.detach(job_id, self.api, grace_s)
                    if not watch.readers and self._watches.get(job_id) is watch:
                        del self._watches[job_id]
                    return
            await asyncio.sleep(1)

    async def _listen(self, client: redis.asyncio.Redis) -> None:
        """Until the connection breaks."""
        async with client.pubsub() as channel:
            await channel.subscribe(key("relay", self.api))
            silent = 0
            while silent < 3:
                message = await channel.get_message(timeout=PING_S)
                if message is None:
                    silent += 1
                    await channel.ping()
                    continue
                silent = 0
                if message["type"] == "subscribe":
                    self._resync()
                    self._start(self._drop_strays())
                elif message["type"] == "message":
                    self._deliver(message["data"])
        raise redis.ConnectionError("the relay's channel is silent")

    def _resync(self) -> None:
        self._subscribed.set()
        for watch in self._watches.values():
            for reader in watch.readers:
                reader.resync()

    async def _drop_strays(self) -> None:
        """A Redis that lost its last writes may have lost a detach: what nobody reads here is let go of again."""
        while True:  # a Redis that still loads its data takes subscriptions, and nothing else
            with suppress(StoreDown):
                for job_id in await self._store.watched(self.api) - self._watches.keys():
                    self._start(self._detach(job_id, self._watches.setdefault(job_id, _Watch()), self._orphan_s))
                return
            await asyncio.sleep(1)

    def _deliver(self, data: str) -> None:
        try:
            for job_id, rows in json.loads(data):
                watch = self._watches.get(job_id)
                if watch is None:
                    continue
                items = [_item(entry_id, entry) for entry_id, entry in rows]
                shared: Shared | None = {} if len(watch.readers) > 1 else None
                for reader in watch.readers:
                    reader.push(items, shared)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if not self._puzzled:  # a newer worker would say it a hundred times a second
                log.warning("a message on the relay's channel makes no sense (%r): readers use their logs", error)
            self._puzzled = True
            self._resync()


def _item(entry_id: str, entry: dict[str, Any]) -> Item:
    """`EntryId.parse` without its checks: a script of ours wrote the id."""
    fence, _, seq = entry_id.partition("-")
    return EntryId(int(fence), int(seq)), decode(entry)
