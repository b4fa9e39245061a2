"""Pools that no test machine can hold: a thousand GPUs, a million jobs in line, load beyond capacity, cells.

The constants of the engines are assumptions here, not measurements; each table says which.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import own_redis
from bench.simulate_engine import StepCost
from bench.simulate_job import Delays, Job
from bench.simulate_line import Line
from bench.simulate_load import Lengths, Mix, burst, poisson
from bench.simulate_plot import lines
from bench.simulate_pool import Pool, Routing
from bench.simulate_report import Tail, groups, jain, percentile, seconds_text, table

#: Assumed steps of a GPU with 64 lanes. `middle` is 25 ms with 64 sequences of the lengths below, about an 8 B model in
#: bf16 on one large GPU; the others are twice as fast and twice as slow.
GPUS = {
    "fast": StepCost(0.0060, 0.00005, 0.000015, 0.00005, 2048, 64),
    "middle": StepCost(0.0120, 0.00012, 0.000030, 0.00012, 2048, 64),
    "slow": StepCost(0.0240, 0.00024, 0.000060, 0.00024, 2048, 64),
}
LENGTHS = Lengths(most=1024)
#: Network and processes of a real site, assumed: the API's part is divided among many processes.
DELAYS = Delays(submit=0.005, submit_gap=0.0, claim=0.005, ticket_gap=0.003, free=0.003, relay=0.005)
WINDOW = 0.005
ROUTINGS: dict[Routing, str] = {
    "random": "at random",
    "waiting": "to the shortest line",
    "present": "to the fewest requests",
}


@dataclass(frozen=True)
class Ran:
    """A simulation that is over. `redis_us` is what Redis spent on the scripts of one job."""

    jobs: list[Job]
    tokens: int
    steps: int
    busy: float  # share of the engines' time until the last job ended
    ended: float
    yields: int
    redis_us: float
    took_s: float


def capacity(cost: StepCost, lengths: Lengths) -> float:
    """Jobs per second of one worker whose lanes are all taken."""
    prompt, answer = lengths.means()
    step = cost.run(1, cost.lanes, cost.lanes * (prompt + answer / 2))
    return 1 / (answer * step / cost.lanes + prompt * cost.prompt)


def simulate(cost: StepCost, gpus: int, times: Iterator[float], *, cells: int = 1, routing: Routing = "random", seed: int = 1) -> Ran:  # fmt: skip
    """Play requests at these times on so many GPUs, until all have ended."""
    rng = random.Random(seed)
    arrivals = Mix(LENGTHS).at(times, rng)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, own_redis(Path(folder)) as url:
        line = Line(url)
        pool = Pool(
            line, cost, DELAYS, workers=gpus, cells=cells, routing=routing, window=WINDOW, seed=seed, tell=_tell
        )
        jobs = pool.run(arrivals)
        spent = line.script_us()
        line.close()
    engines = [worker.engine for worker in pool.workers]
    ended = max(job.ended for job in jobs)
    return Ran(
        jobs, sum(each.tokens for each in engines), sum(each.steps for each in engines),
        sum(each.busy_s for each in engines) / ended / gpus, ended, pool.yields, spent / len(jobs),
        time.perf_counter() - began,
    )  # fmt: skip


def _tell(text: str) -> None:
    print(f"\r{text}   ", end="", flush=True, file=sys.stderr)


def million(gpus: int, jobs: int, names: Sequence[str], redis: tuple[float, float]) -> Iterator[str]:
    """A line that is full at once: how fast it drains, who waits how long, what Redis has to carry.

    `redis`: the tokens and the calls of `step` that one Redis carries per second.
    """
    summary, tails, fair = [], [], []
    carried: list[str] = []
    for name in names:
        ran = simulate(GPUS[name], gpus, burst(random.Random(7), jobs, 1.0))
        rate = ran.tokens / ran.ended
        summary.append(
            f"{name} | {ran.ended:.0f} | {len(ran.jobs) / ran.ended:.0f} | {rate:.0f} | {ran.steps / ran.ended:.0f} "
            f"| {ran.busy:.0%} | {ran.yields} | {ran.redis_us:.0f} | {ran.took_s:.0f}"
        )
        carried += _carried(name, rate, ran, redis)
        for key in ("priority", "tenant"):
            for group, found in groups(ran.jobs, key):
                tails.append(f"{name} | {group} | {len(found)} | {Tail.of(found, DELAYS.relay).cells()}")
        fair += [f"{name} | {band} | {fairness(found, 1.0):.3f}" for band, found in groups(ran.jobs, "priority")]
    yield f"{gpus} GPUs of {GPUS['middle'].lanes} lanes, {jobs} jobs within one second:\n"
    head = (
        "steps | drain s | jobs/s | tokens/s | step calls/s | engines busy | yields | Redis µs per job | simulated in s"
    )
    yield from table(head, summary)
    yield "\nCells, by what one Redis carries; the last row is measured here, the others are given:\n"
    yield from table("steps | what | the pool makes | one Redis carries | cells", carried)
    yield ""
    yield from table("steps | who | jobs | TTFT p50 s | p99 s | p99.9 s", tails)
    yield "\nJain's index of the tokens that the tenants were given while all of them had jobs in line:\n"
    yield from table("steps | band | Jain's index", fair)


def fairness(jobs: Sequence[Job], since: float) -> float:
    """Jain's index over tenants of the tokens that they were given while all of them had jobs in line, of one band."""
    tenants = [found for _, found in groups(jobs, "tenant")]
    until = min(max(job.claimed for job in found) for found in tenants)
    return jain([
        float(sum(job.arrival.prompt + job.arrival.answer for job in found if since < job.claimed <= until))
        for found in tenants
    ])  # fmt: skip


def loads(gpus: int, shares: Sequence[float], seconds: float, steps: str, plots: Path | None) -> Iterator[str]:
    """Steady arrivals at several shares of the capacity; the first third warms up and is not counted."""
    cost, rows = GPUS[steps], []
    series: dict[str, list[float]] = {}
    for share in shares:
        rate = share * capacity(cost, LENGTHS) * gpus
        ran = simulate(cost, gpus, poisson(random.Random(3), rate, seconds))
        counted = [job for job in ran.jobs if job.arrival.at > seconds / 3]
        for band, found in groups(counted, "priority"):
            tail = Tail.of(found, DELAYS.relay)
            rows.append(f"{share:.0%} | {rate:.0f} | {band} | {len(found)} | {tail.cells()}")
            series.setdefault(f"{band} p50", []).append(tail.p50)
            series.setdefault(f"{band} p99", []).append(tail.p99)
        waits = [
            percentile((job.claimed - job.arrival.at for job in found), 50) for _, found in groups(counted, "tenant")
        ]
        rows.append(
            f"{share:.0%} | {rate:.0f} | all, {ran.yields} yields | {len(counted)} | "
            f"{Tail.of(counted, DELAYS.relay).cells()} | {jain(waits):.3f}"
        )
    yield f"{gpus} GPUs, steps `{steps}`, {seconds:.0f} s of arrivals:\n"
    head = "load | jobs/s | band | jobs | TTFT p50 s | p99 s | p99.9 s | Jain's index of the tenants' median waits"
    yield from table(head, (row if row.count("|") == 7 else f"{row} | " for row in rows))
    if plots is not None:
        lines(plots / "load.svg", "Time to first token by load", [f"{share:.0%}" for share in shares], series)


def cells(
    gpus: int, counts: Sequence[int], share: float, seconds: float, steps: str, plots: Path | None
) -> Iterator[str]:
    """The same GPUs as one line, and as cells behind a load balancer."""
    cost, rows = GPUS[steps], []
    rate = share * capacity(cost, LENGTHS) * gpus
    series: dict[str, list[float]] = {}
    for count in counts:
        for routing, how in ROUTINGS.items() if count > 1 else (("random", "-"),):
            ran = simulate(cost, gpus, poisson(random.Random(5), rate, seconds), cells=count, routing=routing)
            counted = [job for job in ran.jobs if job.arrival.at > seconds / 3]
            tail = Tail.of(counted, DELAYS.relay)
            for name in [how] if count > 1 else ROUTINGS.values():
                series.setdefault(name, []).append(tail.p99)
            rows.append(f"{count} | {gpus // count} | {how} | {len(counted)} | {tail.cells()}")
    yield f"{gpus} GPUs, steps `{steps}`, load {share:.0%}, {seconds:.0f} s of arrivals:\n"
    yield from table("cells | GPUs each | a request goes | jobs | TTFT p50 s | p99 s | p99.9 s", rows)
    if plots is not None:
        lines(plots / "cells.svg", f"TTFT p99 by number of cells, load {share:.0%}", [str(n) for n in counts], series)


def _carried(name: str, tokens: float, ran: Ran, redis: tuple[float, float]) -> Iterator[str]:
    """How many Redis, hence cells, a load needs."""
    jobs, calls = len(ran.jobs) / ran.ended, ran.steps / ran.ended
    yield f"{name} | tokens/s | {tokens:.0f} | {redis[0]:.0f} | {tokens / redis[0]:.1f}"
    yield f"{name} | calls of step/s | {calls:.0f} | {redis[1]:.0f} | {calls / redis[1]:.1f}"
    yield f"{name} | jobs/s (submit, claim, end) | {jobs:.0f} | {1e6 / ran.redis_us:.0f} | {jobs * ran.redis_us / 1e6:.1f}"


def assumptions() -> Iterator[str]:
    """The sets of constants, and what they come to."""
    prompt, answer = LENGTHS.means()
    rows = []
    for name, cost in GPUS.items():
        full = cost.run(1, cost.lanes, cost.lanes * (prompt + answer / 2))
        constants = " | ".join(f"{1e3 * value:g}" for value in (cost.fixed, cost.sequence, cost.prompt, cost.context))
        rows.append(
            f"{name} | {constants} | {1e3 * full:.1f} | {cost.lanes / full:.0f} | {seconds_text(capacity(cost, LENGTHS))}"
        )
    head = "steps | fixed ms | per sequence ms | per prompt token ms | per 1000 keys ms | step at 64 ms | tokens/s | jobs/s per GPU"
    yield from table(head, rows)
    yield f"\nPrompts have {prompt:.0f} tokens on average, answers {answer:.0f}: log-normal with medians of 400 and 200."
