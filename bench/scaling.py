"""Does the pool's rate grow with its workers? Tokens/s at the log with 1, 2, 4, … workers of the scripted engine.

Every worker is a real Celery process; its steps last `--step-ms`, so slow that the machine is not what limits it: the share
of the cores that is busy is printed, and has to stay below 60 % for the table to say something of the pool. Jobs come in
through the API, and nobody reads them: what counts is what the records of the jobs say is in their logs. In the end all but
the first worker drain, and it is measured again: the first row must still hold.

    python bench/scaling.py
    python bench/scaling.py --workers 1 2 4 --step-ms 100
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httpx
import psutil
import redis
from pool_rig import PoolRig, Served, until
from servers import own_redis

from tasks.keys import key, single

#: An answer is as long as its context allows, so that no job ends while it is measured.
CONTEXT, ANSWER = 32_768, 32_000
AT_ONCE = 8


@dataclass
class Row:
    """So many workers: tokens per second of every window, and the cores that were busy."""

    workers: int
    rates: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    cores: dict[str, list[float]] = field(default_factory=dict)


class Log:
    """How many tokens the jobs that run have in their logs."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=True)

    def running(self) -> int:
        """Jobs with a lease."""
        return int(self._redis.zcard(single("leases")))

    def tokens(self) -> tuple[int, float]:
        """All of them together, and Redis' time in seconds at which that was so."""
        pipe = self._redis.pipeline()  # at one moment
        for job in cast(list[str], self._redis.zrange(single("leases"), 0, -1)):
            pipe.hget(key("job", job), "tokens")
        pipe.time()
        *counts, (seconds, micros) = pipe.execute()
        return sum(map(int, counts)), seconds + micros / 1e6


async def submit(rig: PoolRig, jobs: int, step_ms: int) -> None:
    """Stored jobs, that run without a reader."""
    body = {"model": "fake", "prompt": f"[tokens={ANSWER}] [step_ms={step_ms}]", "max_tokens": ANSWER, "temperature": 0}
    gate = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=rig.url, timeout=60) as http:

        async def one() -> None:
            async with gate:
                (await http.post("/v1/jobs", json=body)).raise_for_status()

        await asyncio.gather(*(one() for _ in range(jobs)))


def measure(rig: PoolRig, log: Log, workers: int, options: argparse.Namespace) -> Row:
    """All windows of one number of workers."""
    row = Row(workers)
    time.sleep(options.settle)
    for _ in range(options.windows):
        cpu, (tokens, at) = rig.cpu_s(), log.tokens()
        psutil.cpu_percent()
        time.sleep(options.seconds)
        row.busy.append(psutil.cpu_percent())
        more, later = log.tokens()
        row.rates.append((more - tokens) / (later - at))
        for part, seconds in rig.cpu_s().items():
            row.cores.setdefault(part, []).append((seconds - cpu[part]) / (later - at))
    return row


def show(row: Row, one: float, options: argparse.Namespace) -> None:
    """A line of the table."""
    rate = statistics.median(row.rates)
    asked = row.workers * options.lanes * 1000 / options.step_ms
    cores = ", ".join(f"{part} {statistics.median(used):.2f}" for part, used in row.cores.items())
    spread = f"{rate:.1f} ({min(row.rates):.1f}-{max(row.rates):.1f})"
    print(
        f"| {row.workers} | {spread} | {rate / (row.workers * one):.3f} | {rate / asked:.3f} "
        f"| {statistics.median(row.busy):.0f} % | {cores} |",
        flush=True,
    )


def sweep(rig: PoolRig, log: Log, options: argparse.Namespace) -> None:
    """Upwards, and then the first row again."""
    one = 0.0
    for workers in sorted(options.workers):
        new = workers - len(rig.workers)
        rig.start_workers("fake", new)
        rig.wait_ready()
        asyncio.run(submit(rig, new * options.lanes, options.step_ms))
        full = workers * options.lanes
        until(lambda full=full: log.running() == full, f"{full} jobs that run", 120)  # type: ignore[misc]
        row = measure(rig, log, workers, options)
        one = one or statistics.median(row.rates) / workers
        show(row, one, options)
    first = min(options.workers)
    rig.stop_workers(first)
    until(lambda: log.running() == first * options.lanes, "the first workers alone", 120)
    show(measure(rig, log, first, options), one, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="(default 1 2 4 8 16 32)")
    parser.add_argument("--lanes", type=int, default=8, help="sequences that a worker runs (default 8)")
    parser.add_argument("--step-ms", type=int, default=250, help="how long its step lasts (default 250)")
    parser.add_argument("--windows", type=int, default=5, help="measurements of each number of workers (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a measurement (default 5)")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds before the first one (default 3)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; steps of {options.step_ms} ms, {options.lanes} lanes a worker,", end=" ")
    print(f"{options.windows} windows of {options.seconds:g} s\n")
    print("| workers | tokens/s at the log, median (spread) | / (n x rate of one) | / asked of the engine ", end="")
    print("| machine busy | cores used |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = Served("fake", "fake", lanes=options.lanes, context=CONTEXT)
        with own_redis(folder / "redis") as url, PoolRig(folder, url, [model]) as rig:
            rig.start_api()
            sweep(rig, Log(url), options)


if __name__ == "__main__":
    main()
