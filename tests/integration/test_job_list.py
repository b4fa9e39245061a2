"""The list of submitted jobs: newest first, in pages, without those that are kept no more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tasks.connections import connect_async
from tasks.errors import UnknownJob
from tasks.jobs import JobSpec, new_id
from tasks.keys import key
from tasks.sampling import Sampling
from tasks.settings import Settings
from tasks.store import JobStore


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(connect_async(redis_url, "test"), Settings())
    yield store
    await store.close()


async def submit(store: JobStore) -> str:
    spec = JobSpec(new_id("job"), "chat", "m", ((1,),), Sampling(max_tokens=1, seed=0), store=True)
    await store.submit(spec, limit=100, listed=True)
    return spec.id


async def test_pages_go_on_after_the_last_id(store: JobStore) -> None:
    ids = [await submit(store) for _ in range(5)]
    first = await store.jobs("default", 3)
    rest = await store.jobs("default", 3, first[-1])
    assert sorted(first + rest) == sorted(ids)
    assert len(first) == 3


async def test_an_id_that_is_not_listed_is_an_error_and_not_the_first_page(store: JobStore) -> None:
    await submit(store)
    with pytest.raises(UnknownJob):
        await store.jobs("default", 3, new_id("job"))


async def test_jobs_that_are_kept_no_more_leave_the_list(store: JobStore, redis_url: str) -> None:
    gone = [await submit(store) for _ in range(6)]
    client = connect_async(redis_url, "other")
    await client.delete(*(key("job", job_id) for job_id in gone))
    await client.aclose()
    kept = [await submit(store) for _ in range(3)]  # each takes two of them away, so the list shrinks in any case
    assert sorted(await store.jobs("default", 100)) == sorted(kept)
