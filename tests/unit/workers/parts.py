"""Pieces of a worker for unit tests: claims by hand, and a real job that a real ledger holds."""

from __future__ import annotations

import asyncio
from typing import Any

from tasks.connections import connect, connect_async
from tasks.jobs import JobSpec, new_id
from tasks.ledger import Claim, JobLedger
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore
from workers.attempt import Attempt
from workers.engine import fake_model


def make_spec(*texts: str, n: int = 1, **sampling: Any) -> JobSpec:
    """A greedy job for the fake model."""
    encode = fake_model.build_tokenizer().encode
    prompts = tuple(tuple(encode(text).ids) for text in texts)
    wanted = Sampling(**({"max_tokens": 1000, "seed": 1, "temperature": 0.0} | sampling))
    return JobSpec(new_id("job"), "completion", "fake", prompts, wanted, n=n)


def make_attempt(*texts: str, n: int = 1, strikes: int = 0, seq: int = 1) -> Attempt:
    """An attempt that no store knows."""
    return Attempt(Claim(make_spec(*texts, n=n), fence=5, attempt=1, seq=seq, strikes=strikes))


def make_ledger(url: str) -> JobLedger:
    """A worker's ledger."""
    return JobLedger(connect(url, "test"), load_settings())


def submit(url: str, *texts: str, n: int = 1) -> str:
    """Put a job in line."""

    async def run() -> str:
        store = JobStore(connect_async(url, "test"), load_settings())
        job = await store.submit(make_spec(*texts, n=n), limit=100)
        await store.close()
        return job.id

    return asyncio.run(run())


def cancel(url: str, job: str) -> str:
    """Cancel a job."""

    async def run() -> str:
        store = JobStore(connect_async(url, "test"), load_settings())
        answer = await store.cancel(job)
        await store.close()
        return answer

    return asyncio.run(run())


def claimed(url: str, ledger: JobLedger, *texts: str, n: int = 1) -> Attempt:
    """A job in line, claimed."""
    submit(url, *texts, n=n)
    claim = ledger.claim("fake", "w1")
    assert isinstance(claim, Claim)
    return Attempt(claim)
