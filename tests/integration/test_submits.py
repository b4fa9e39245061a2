"""Submits that come together travel together, and still each is its own: its answer, its error, its cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

import tasks.connections
from tasks import batching
from tasks.connections import connect_async
from tasks.errors import Conflict, QueueFull, StoreDown
from tasks.keys import key
from tasks.settings import Settings
from tasks.store import JobStore
from tests.api_server import MODEL
from tests.integration.relay_rig import make_spec
from tests.own_redis import OwnRedis


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[JobStore]:
    made = JobStore(connect_async(redis_url, "test"), Settings(redis_url=redis_url))
    yield made
    await made.close()


async def test_each_caller_gets_its_own_answer(store: JobStore) -> None:
    """More than one pipeline holds, and every job in line once, in the order in which they came."""
    specs = [make_spec() for _ in range(3 * batching.MOST + 7)]
    answers = await asyncio.gather(*(store.submit(spec, limit=1000) for spec in specs))
    assert [answer.id for answer in answers] == [spec.id for spec in specs]
    assert [answer.position for answer in answers] == list(range(1, len(specs) + 1))
    assert await store.positions([spec.id for spec in specs]) == list(range(1, len(specs) + 1))


async def test_they_travel_in_one_pipeline(store: JobStore, redis_url: str) -> None:
    """One turn of the event loop, one connection; with a pipeline per call each would open its own."""
    await asyncio.gather(*(store.submit(make_spec(), limit=1000) for _ in range(batching.MOST)))
    with redis.Redis.from_url(redis_url) as client:
        names = [row["name"] for row in client.client_list()]
    assert names.count("penstock-test") == 1


async def test_each_caller_gets_its_own_error(store: JobStore) -> None:
    """A full line, a key used with another body, and a script that fails, side by side."""
    first = await store.submit(make_spec(), limit=10, idempotency_key="k", body_hash="a")
    results = await asyncio.gather(
        store.submit(make_spec(), limit=0),
        store.submit(make_spec(), limit=10, idempotency_key="k", body_hash="b"),
        store.submit(make_spec(), limit=10, idempotency_key="k", body_hash="a"),
        store.submit(make_spec(), limit="x"),  # type: ignore[arg-type]  # the script compares it with a number
        store.submit(make_spec(), limit=10),
        return_exceptions=True,
    )
    full, conflict, existing, failed, good = results
    assert isinstance(full, QueueFull)
    assert isinstance(conflict, Conflict)
    assert not isinstance(existing, BaseException)
    assert (existing.id, existing.existing) == (first.id, True)
    assert isinstance(failed, StoreDown)
    assert not isinstance(good, BaseException)
    assert good.position == 2


async def test_one_that_is_cancelled_leaves_the_others_alone(store: JobStore) -> None:
    """Before it left, it is not sent; on its way, its job is there and nobody else notices."""
    specs = [make_spec() for _ in range(5)]
    tasks = [asyncio.create_task(store.submit(spec, limit=1000)) for spec in specs]
    await asyncio.sleep(0)  # they wait in the batch
    tasks[0].cancel()
    await asyncio.sleep(0)  # the batch has left
    tasks[3].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [True, False, False, True, False]
    assert await store.get(specs[0].id) is None
    assert await store.get(specs[3].id) is not None
    assert (await store.submit(make_spec(), limit=1000)).position == 5


async def test_scripts_that_redis_forgot_are_loaded_again(store: JobStore, redis_url: str) -> None:
    await store.submit(make_spec(), limit=1000)
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    answers = await asyncio.gather(*(store.submit(make_spec(), limit=1000) for _ in range(20)))
    assert [answer.position for answer in answers] == list(range(2, 22))


async def test_an_outage_reaches_the_whole_batch_and_nobody_later(tmp_path: Path) -> None:
    own = OwnRedis(tmp_path).start()
    store = JobStore(connect_async(own.url, "test"), Settings(redis_url=own.url))
    specs = [make_spec() for _ in range(2 * batching.MOST)]
    own.kill()
    failed = await asyncio.gather(*(store.submit(spec, limit=1000) for spec in specs), return_exceptions=True)
    assert all(isinstance(error, StoreDown) for error in failed)
    await asyncio.to_thread(own.start)
    assert (await store.submit(specs[0], limit=1000)).position == 1
    await store.close()
    own.kill()


async def test_a_redis_that_hangs_holds_up_nobody_for_longer_than_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pipelines their number makes."""
    monkeypatch.setattr(tasks.connections, "TIMEOUT_S", 0.5)
    own = OwnRedis(tmp_path).start()
    store = JobStore(connect_async(own.url, "test"), Settings(redis_url=own.url))
    await store.submit(make_spec(), limit=1000)
    own.hang()
    begun = time.monotonic()
    calls = [store.submit(make_spec(), limit=10_000) for _ in range(10 * batching.MOST)]
    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begun < 3
    assert all(isinstance(error, StoreDown) for error in failed)
    own.go_on()
    await store.close()
    own.kill()


async def test_a_job_that_does_not_wait_has_no_place(store: JobStore, redis_url: str) -> None:
    specs = [make_spec() for _ in range(3)]
    for spec in specs:
        await store.submit(spec, limit=1000)
    with redis.Redis.from_url(redis_url) as client:
        client.zrem(key("waiting", MODEL), specs[1].id)
    asked = [spec.id for spec in specs] + ["job_" + "x" * 24]
    assert await store.positions(asked) == [1, None, 2, None]
    assert await store.positions([]) == []
