"""What `PENSTOCK_APPENDFSYNC=always` costs against `everysec`: accepted jobs per second and engine steps per second.

Two Redis servers with their files on the same disk, one of each kind. Both get the same work in rounds that alternate,
so that a noisy machine or disk hits both. Only a real disk tells the truth: the folder must not be in memory.

    python bench/fsync.py --rounds 7
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import redis
from servers import own_redis

from tasks.connections import connect, connect_async
from tasks.events import Delta, encode
from tasks.jobs import JobSpec, new_id
from tasks.ledger import Claim, JobLedger, Write
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore

MODES = ("everysec", "always")


@dataclass
class Sample:
    """The rates of one mode in every round."""

    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, work: str, rate: float) -> None:
        """One round's rate."""
        self.rates.setdefault(work, []).append(rate)


async def submit(url: str, jobs: int, at_once: int) -> float:
    """Accepted jobs per second, with so many clients that each wait for their answer."""
    store = JobStore(connect_async(url, "bench"), load_settings())

    async def client(count: int) -> None:
        for _ in range(count):
            await store.submit(spec(), limit=10**9)

    await store.ping()
    begin = time.perf_counter()
    await asyncio.gather(*(client(jobs // at_once) for _ in range(at_once)))
    took = time.perf_counter() - begin
    await store.close()
    return jobs // at_once * at_once / took


def spec() -> JobSpec:
    """A chat with a prompt of two hundred tokens."""
    return JobSpec(new_id("chat"), "chat", "bench", (tuple(range(200)),), Sampling(max_tokens=10**6, seed=1))


def steps(url: str, jobs: int, count: int) -> float:
    """Engine steps written per second: one call for all jobs, each with one new token."""
    asyncio.run(submit(url, jobs, 1))
    ledger = JobLedger(connect(url, "bench"), load_settings())
    claims = [claim for _ in range(jobs) if isinstance(claim := ledger.claim("bench", "w"), Claim)]
    begin = time.perf_counter()
    for step in range(count):
        entry = (encode(Delta(0, step, (1000 + step % 1000,), " word")), 1)
        answers = ledger.step([Write(claim.spec.id, claim.fence, claim.seq + 1 + step, [entry]) for claim in claims])
        assert all(answer.verdict == "ok" for answer in answers)
    took = time.perf_counter() - begin
    ledger.close()
    return count / took


def works(options: argparse.Namespace) -> dict[str, Callable[[str], float]]:
    """What is measured, by name."""
    jobs, count = options.jobs, options.steps
    return {
        "submits/s, 1 client": lambda url: asyncio.run(submit(url, jobs, 1)),
        "submits/s, 32 clients": lambda url: asyncio.run(submit(url, 4 * jobs, 32)),
        "steps/s, 1 job": lambda url: steps(url, 1, count),
        "steps/s, 64 jobs": lambda url: steps(url, 64, count),
    }


def measure(urls: dict[str, str], options: argparse.Namespace) -> dict[str, Sample]:
    """All rounds; the first one warms up and is dropped."""
    samples = {mode: Sample() for mode in MODES}
    for number in range(options.rounds + 1):
        for name, work in works(options).items():
            for mode in MODES if number % 2 else MODES[::-1]:
                with redis.Redis.from_url(urls[mode]) as client:
                    client.flushall()
                rate = work(urls[mode])
                if number:
                    samples[mode].add(name, rate)
    return samples


def cell(rates: list[float]) -> str:
    """Median and spread."""
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"


def disk(folder: Path) -> str:
    """The file system of a folder, and how long it takes to write a page and sync it."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()
    took = []
    with (folder / "probe").open("wb") as file:
        for _ in range(100):
            begin = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - begin)
    return f"file system {kind or 'unknown'}, fdatasync of 4 KiB: median {statistics.median(took) * 1000:.2f} ms"


def main() -> None:
    """Run the rounds and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=300, help="jobs that one client submits in a round")
    parser.add_argument("--steps", type=int, default=300, help="engine steps in a round")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the files lie (default: here)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".fsync-") as name, ExitStack() as stack:
        folder = Path(name).resolve()
        print(f"{options.rounds} rounds, {os.cpu_count()} cores, {disk(folder)}\n")
        urls = {mode: stack.enter_context(own_redis(folder / mode, mode)) for mode in MODES}
        samples = measure(urls, options)
    print("| work | everysec, median (spread) | always, median (spread) | always / everysec, median of rounds |")
    print("|---|---|---|---|")
    for work, rates in samples["everysec"].rates.items():
        always = samples["always"].rates[work]
        ratio = statistics.median(b / a for a, b in zip(rates, always, strict=True))
        print(f"| {work} | {cell(rates)} | {cell(always)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
