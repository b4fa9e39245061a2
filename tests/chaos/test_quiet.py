"""What is left behind is found, in a real Redis."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from chaos import quiet
from chaos.audit import COLUMNS
from chaos.auditor import Auditor, copy_of
from chaos.circumstances import Sky
from chaos.quiet import Level, nothing_left, strangers
from chaos.record import Account
from chaos.report import Tally
from tasks.connections import connect_async, connect_subscriber
from tasks.jobs import JobSpec, new_id
from tasks.keys import key, single
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore
from tests.unit.chaos.made_up import ASK

SPEC = JobSpec(new_id("job"), "chat", "fake", ((1, 2),), Sampling(5, 1))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    client = connect_async(redis_url, "test")
    yield client
    await client.aclose()


@pytest.fixture
def store(redis: Any, redis_url: str) -> JobStore:
    return JobStore(redis, load_settings(redis_url=redis_url))


async def left(redis: Any, apis: int = 0) -> list[str]:
    """What the check finds, without patience."""
    return [finding.text for finding in await nothing_left(redis, [], apis, 1, Level(), 0.0)]


async def test_an_empty_store_and_permanent_keys_are_no_leak(redis: Any) -> None:
    for name in ("tickets", "tick"):
        await redis.set(single(name), "1")
    await redis.sadd(single("models"), "fake")
    await redis.hset(key("profile", "fake"), "json", "{}")
    await redis.set(key("job", "x"), "", ex=60)
    assert await left(redis) == []


@pytest.mark.parametrize("name", ["leases", "orphans", "deadlines"])
async def test_an_index_that_is_not_empty_is_a_leak(redis: Any, name: str) -> None:
    await redis.zadd(single(name), {"job_1": 1})
    assert len(await left(redis)) == 1


@pytest.mark.parametrize("family", ["job", "log", "watch", "watched", "waiting", "queue", "idem"])
async def test_a_key_without_ttl_is_a_leak(redis: Any, family: str) -> None:
    await redis.set(key(family, "x"), "1")
    assert len(await left(redis)) == 1
    await redis.expire(key(family, "x"), 60)
    assert await left(redis) == []


async def test_a_job_that_has_not_ended_is_a_leak(redis: Any, store: JobStore) -> None:
    await store.submit(SPEC, limit=10)
    assert any("is still queued" in text for text in await left(redis))


async def test_subscriptions_and_apis_are_counted(redis: Any, redis_url: str) -> None:
    assert len(await left(redis, apis=1)) == 3
    await redis.zadd(single("apis"), {"api-1": 1})
    relay = connect_subscriber(redis_url, "relay")
    async with relay.pubsub() as channel:
        await channel.subscribe(key("relay", "api-1"))
        await channel.get_message(timeout=5)
        assert await left(redis, apis=1) == []
        assert len(await left(redis, apis=0)) == 3
    await relay.aclose()


async def test_open_files_and_connections_are_counted(redis: Any, redis_url: str) -> None:
    pid, port = os.getpid(), urlsplit(redis_url).port or 0
    assert await nothing_left(redis, [pid], 0, port, quiet.level(pid, port), 0.0) == []
    found = await nothing_left(redis, [pid], 0, port, Level(), 0.0)
    assert ["more open than" in finding.text for finding in found] == [True]
    found = await nothing_left(redis, [pid], 0, 1, quiet.level(pid, 1), 0.0)
    assert ["connections of clients" in finding.text for finding in found] == [True]


async def test_jobs_that_nobody_knows_are_found(redis: Any, store: JobStore) -> None:
    await store.submit(SPEC, limit=10)
    assert await strangers(redis, set()) == [f"{SPEC.id} queued"]
    assert await strangers(redis, {SPEC.id}) == []


async def test_a_job_that_never_ends_is_lost(redis: Any, store: JobStore) -> None:
    await store.submit(SPEC, limit=10)
    tally = Tally()
    auditor = Auditor(redis, lambda: Sky(()), tally, 0.0)
    auditor.through(Account("disconnect", ASK, SPEC.id, outcome="left"))
    await auditor.finish(0.2)
    assert "lost" in tally.counts()
    assert set(tally.counts()) <= set(COLUMNS)
    found = await copy_of(redis, SPEC.id)
    assert found is not None
    assert found.record["state"] == "queued"
    assert await copy_of(redis, new_id("job")) is None
