"""Where one Redis ends: tokens/s of `step.lua` alone, from processes that do nothing but call it.

Jobs are submitted and claimed by the real scripts, and `JobLedger.step` lays out every call; the calls are packed before the
clock runs, so that a generator costs next to nothing and Redis is what is measured. AOF everysec, as `penstock up` runs it;
`--channels` API processes watch the jobs, each with a subscriber that reads what it is sent.

The first table is saturation: calls as fast as they are answered. The second paces them: so many workers of `--jobs` lanes at
`--step-ms`, each with a connection of its own. Redis' CPU is its own count (INFO cpu); the capacity derived from it is what a
core of its own would carry, whatever else ran beside it here.

    python bench/redis_limit.py
    python bench/redis_limit.py --workers 4 8 12 --seconds 10
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from redis_calls import Measured, Work, measure
from servers import own_redis


def saturate(url: str, options: argparse.Namespace) -> list[Measured]:
    """The first table: rounds that take turns. Returns what the largest number of generators with channels came to."""
    most, usual = max(options.generators), options.channels[0]
    rows = [
        (generators, options.jobs, 1, channels)
        for channels in (0, *options.channels)
        for generators in options.generators
    ]
    rows += [(most, 1, 1, usual), (most, options.jobs, 4, usual)]
    results: dict[tuple[int, int, int, int], list[Measured]] = {row: [] for row in rows}
    for number in range(options.rounds):
        for row in rows if number % 2 else rows[::-1]:
            results[row].append(measure(Work(url, *row, options.seconds)))
    print("| generators | jobs a call | entries a job | relay channels | tokens/s, median (spread) | calls/s ", end="")
    print("| Redis' cores | Redis' CPU a call, ms | call p50 / p99 ms |\n|---|---|---|---|---|---|---|---|---|")
    for row, measured in results.items():
        print(f"| {' | '.join(map(str, row))} | {cells(measured)} |", flush=True)
    return results[most, options.jobs, 1, usual]


def cells(measured: list[Measured]) -> str:
    """Medians; the rate with its spread."""
    rates = [each.tokens_per_s for each in measured]
    calls = statistics.median(each.calls_per_s for each in measured)
    cores = statistics.median(each.redis_cores for each in measured)
    cpu_ms = statistics.median(each.cpu_ms for each in measured)
    p50, p99 = (statistics.median(pick(each.took_ms, share) for each in measured) for share in (0.5, 0.99))
    spread = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
    return f"{spread} | {calls:.0f} | {cores:.2f} | {cpu_ms:.2f} | {p50:.2f} / {p99:.2f}"


def pick(ordered: list[float], share: float) -> float:
    """A quantile."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def pace(url: str, options: argparse.Namespace) -> None:
    """The second table."""
    step_s = options.step_ms / 1000
    print(
        f"\n| workers, {options.jobs} lanes at {options.step_ms:g} ms | tokens/s asked for | tokens/s, median (spread)",
        end="",
    )
    print(" | calls/s | Redis' cores | Redis' CPU a call, ms | call p50 / p99 ms |\n|---|---|---|---|---|---|---|")
    for workers in options.workers:
        work = Work(url, workers, options.jobs, 1, options.channels[0], options.seconds, step_s)
        measured = [measure(work) for _ in range(options.rounds)]
        print(f"| {workers} | {workers * options.jobs / step_s:.0f} | {cells(measured)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", type=int, nargs="+", default=[1, 2], help="processes that call (default 1 2)")
    parser.add_argument("--jobs", type=int, default=64, help="lanes of a worker: jobs in one call (default 64)")
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 4], help="API processes (default 1 4)")
    parser.add_argument("--step-ms", type=float, default=25.0, help="of the workers that are paced (default 25)")
    parser.add_argument("--workers", type=int, nargs="*", default=[4, 8, 12], help="paced (default 4 8 12)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {options.rounds} rounds of {options.seconds:g} s, AOF everysec\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, own_redis(Path(folder)) as url:
        full = saturate(url, options)
        pace(url, options)
    cpu_ms = statistics.median(each.cpu_ms for each in full)
    carries = options.step_ms / cpu_ms
    print(
        f"\nA call of {options.jobs} jobs costs Redis {cpu_ms:.2f} ms of CPU, so one core carries {1000 / cpu_ms:.0f}",
        end=" ",
    )
    print(
        f"calls/s = {1000 / cpu_ms * options.jobs:.0f} tokens/s: {carries:.1f} workers of {options.jobs} lanes at steps",
        end=" ",
    )
    print(
        f"of {options.step_ms:g} ms ({1000 / options.step_ms:g} calls/s each), {0.8 * carries:.1f} of them at 80 % load."
    )


if __name__ == "__main__":
    main()
