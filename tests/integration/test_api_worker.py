"""The whole line on real processes: the API, Redis, a Celery worker with the fake engine, the OpenAI SDK as it is."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import redis

from tasks.catalog import load_catalog
from tasks.keys import key
from tests.api_server import MODEL, serve, settings_of
from tests.processes import WorkerProcess, start_worker, wait_until, write_fake_model


@pytest.fixture
def workers(tmp_path: Path, redis_url: str) -> Iterator[list[WorkerProcess]]:
    models = write_fake_model(tmp_path)
    made = [start_worker(tmp_path, redis_url, models, {"PENSTOCK_LEASE_S": "1"})]
    made[0].wait_ready()
    yield made
    for worker in made:
        worker.stop()


@pytest.fixture
def url(tmp_path: Path, redis_url: str, workers: list[WorkerProcess]) -> Iterator[str]:
    with serve(settings_of(redis_url, lease_s=1), *load_catalog(tmp_path / "models.toml").entries.values()) as made:
        yield f"{made}/v1"


async def test_many_streams_at_once_are_exact(url: str) -> None:
    dice = random.Random()

    async def count(sdk: openai.AsyncOpenAI) -> None:
        low = dice.randint(0, 900)
        high = low + dice.randint(1, 20)
        text = ""
        async for chunk in await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"Count from {low} to {high}."}], stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        assert text == ", ".join(str(number) for number in range(low, high + 1))

    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=60) as sdk:
        await asyncio.gather(*(count(sdk) for _ in range(60)))


async def test_a_stream_goes_on_when_its_worker_is_killed(
    url: str, workers: list[WorkerProcess], tmp_path: Path, redis_url: str
) -> None:
    """Mid-sentence, on another worker: the client sees one answer, each token once."""
    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=60) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count from 1 to 60. [step_ms=20]"}], stream=True
        )
        text, roles = "", 0
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            roles += bool(chunk.choices[0].delta.role)
            if text.endswith("20") and len(workers) == 1:
                workers[0].signal(signal.SIGKILL)
                workers.append(start_worker(tmp_path, redis_url, tmp_path / "models.toml", {"PENSTOCK_LEASE_S": "1"}))
    assert text == ", ".join(str(number) for number in range(1, 61))
    assert (roles, len(workers)) == (1, 2)


async def test_a_lane_is_free_when_its_client_goes_away(url: str, redis_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0, timeout=60) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "[tokens=4000] [step_ms=20]"}], stream=True
        )
        chunk = await anext(aiter(stream))
        await stream.close()
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            look = lambda: client.hget(key("job", chunk.id), "state") == "cancelled"  # noqa: E731
            await asyncio.to_thread(wait_until, look, "the cancel", 3.0)
            assert client.zcard("penstock:leases") == 0
