"""The model of the pool on a real Redis: the line is the product's own, and nothing gets lost or runs twice."""

from __future__ import annotations

import random
from dataclasses import replace

import redis

from bench.simulate_engine import StepCost
from bench.simulate_job import Delays, Job
from bench.simulate_line import Line
from bench.simulate_load import Arrival, Lengths, Mix, burst
from bench.simulate_pool import Pool
from tasks.connections import connect, connect_async
from tasks.keys import single
from tasks.ledger import Claim, JobLedger
from tasks.settings import Settings
from tasks.store import JobStore

COST = StepCost(fixed=0.010, sequence=0.0002, prompt=0.00005, context=0.0001, budget=256, lanes=4)
MIX = Mix(Lengths(prompt=60, answer=40, most=200))


def drawn(jobs: int, seconds: float = 0.0) -> list[Arrival]:
    rng = random.Random(11)
    return MIX.at(burst(rng, jobs, seconds), rng)


def simulated(redis_url: str, arrivals: list[Arrival], cells: int = 1, workers: int = 3) -> Pool:
    line = Line(redis_url)
    pool = Pool(line, COST, Delays(), workers=workers, cells=cells, seed=1)
    pool.run(arrivals)
    line.close()
    return pool


async def test_jobs_are_claimed_in_the_order_of_the_real_scripts(redis_url: str) -> None:
    """100 jobs in line before the first lane asks: as the product itself hands them out, by its own clock."""
    arrivals = drawn(100)
    line = Line(redis_url)
    pool = Pool(line, replace(COST, lanes=100), Delays(claim=1.0, ticket_gap=0.0), workers=1, seed=1)
    pool.run(arrivals)
    line.close()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    settings = Settings(redis_url=redis_url, lease_s=1000)
    store, ledger = (
        JobStore(connect_async(redis_url, "test"), settings),
        JobLedger(connect(redis_url, "test"), settings),
    )
    for number, arrival in enumerate(arrivals):
        await store.submit(Job(number, arrival).spec(), limit=1000)
    claims = [ledger.claim("cell-0", "worker") for _ in arrivals]
    real = [claim.spec.id for claim in claims if isinstance(claim, Claim)]
    assert [f"job_{number}" for number in pool.order] == real
    assert len(set(real)) == 100
    assert real != sorted(real, key=lambda name: int(name[4:])), "the order of arrival would say nothing"
    await store.close()
    ledger.close()


def test_every_job_ends_exactly_once_with_all_its_tokens(redis_url: str) -> None:
    arrivals = drawn(100, 0.5)
    pool = simulated(redis_url, arrivals)
    assert len(pool.jobs) == 100
    assert [job.verdicts for job in pool.jobs] == [["ok"]] * 100
    assert all(job.arrival.at < job.submitted < job.claimed < job.ended for job in pool.jobs)
    assert all(job.first <= job.ended for job in pool.jobs)
    assert pool.yields > 0, "batch jobs gave way to interactive ones, and still ended once"
    assert sum(worker.engine.tokens for worker in pool.workers) >= sum(each.answer for each in arrivals)
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(single("leases"), "penstock:waiting:cell-0")
        assert client.llen("penstock.cell-0") == pool.tickets(0)


def test_the_same_seed_gives_the_same_run(redis_url: str) -> None:
    runs = []
    for _ in range(2):
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        runs.append([(job.claimed, job.ended) for job in simulated(redis_url, drawn(60, 0.2)).jobs])
    assert runs[0] == runs[1]


def test_urgent_jobs_and_small_tenants_come_first(redis_url: str) -> None:
    flood = [Arrival(0.0, 50, 50, "greedy", "batch")] * 60
    late = [Arrival(0.1, 50, 50, "small", "batch")] * 3 + [Arrival(0.1, 50, 50, "small", "interactive")]
    jobs = simulated(redis_url, [*flood, *late], workers=1).jobs
    last_of_flood = max(job.claimed for job in jobs[:60])
    assert max(job.claimed for job in jobs[60:63]) < last_of_flood / 2
    assert jobs[63].claimed - jobs[63].submitted < 0.2, "a batch job had to yield"


def test_cells_are_lines_of_their_own(redis_url: str) -> None:
    pool = simulated(redis_url, drawn(60, 0.1), cells=3)
    assert {job.cell for job in pool.jobs} == {0, 1, 2}
    assert all(job.verdicts == ["ok"] for job in pool.jobs)
