"""Relays without an API around them, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import redis

from api.closing import end
from api.reader import Item, Reader
from api.relay import Relay
from tasks.connections import connect_async, connect_subscriber
from tasks.events import START
from tasks.jobs import JobSpec, new_id
from tasks.sampling import Sampling
from tasks.settings import Settings
from tasks.store import JobStore
from tests.api_server import MODEL, Attempt, ScriptedWorker


def make_spec(store: bool = True) -> JobSpec:
    return JobSpec(new_id("job"), "chat", MODEL, ((1, 2, 3),), Sampling(1000, 1), store=store)


@asynccontextmanager
async def relays(url: str, count: int = 1) -> AsyncIterator[tuple[JobStore, list[Relay]]]:
    store = JobStore(connect_async(url, "test"), Settings(redis_url=url))
    made = [Relay(store, lambda: connect_subscriber(url, "test-relay"), f"api-{i}", 30.0) for i in range(count)]
    tasks = [asyncio.create_task(relay.run()) for relay in made]
    try:
        for relay in made:
            await relay.subscribed()
        yield store, made
    finally:
        for relay in made:
            await relay.close(1)
        await end(*tasks)
        await store.close()


Running = tuple[Relay, Reader, ScriptedWorker, Attempt, redis.Redis]


@asynccontextmanager
async def running(url: str, said: int) -> AsyncIterator[Running]:
    """A running job that has said `said` words, all of them read."""
    worker = ScriptedWorker(url)
    async with relays(url) as (store, [relay]):
        spec = make_spec()
        reader = relay.open(spec.id, START)
        await store.submit(spec, limit=10, api=relay.api)
        attempt = worker.claim()
        attempt.say(*(str(i) for i in range(said)))
        await read_count(reader.next, said + 1)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield relay, reader, worker, attempt, client
    worker.close()


async def read_count(next_items: Callable[[float], Awaitable[list[Item]]], count: int) -> list[Item]:
    items: list[Item] = []
    async with asyncio.timeout(10):
        while len(items) < count:
            items += await next_items(0.5)
    assert len(items) == count
    return items
