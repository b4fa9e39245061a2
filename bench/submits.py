"""Submits per second: through `JobStore.submit`, and by POST /v1/jobs beside an endpoint that only validates.

The bare endpoint is FastAPI's, with the same pydantic model and the same length of answer. Both are one process behind
uvicorn, asked by the same concurrent clients in rounds that take turns. Prompts are token ids, so that nothing is
tokenised; what the same text costs more as a prompt is the last row.

    python bench/submits.py --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop
from clients import Caller
from scripted import MODEL, Server, penstock
from servers import free_port, own_redis

from tasks.connections import connect_async
from tasks.jobs import JobSpec, new_id
from tasks.sampling import Sampling
from tasks.settings import Settings
from tasks.store import JobStore

WORDS = "The quick brown fox jumps over the lazy dog. " * 4
BARE, OURS, TEXT = "bare FastAPI, same model", "POST /v1/jobs, token ids", "POST /v1/jobs, text"


@dataclass(frozen=True)
class Rate:
    """Calls per second, and microseconds of CPU of the serving process per call."""

    per_s: float
    us: float


async def through_store(url: str, callers: int, count: int) -> Rate:
    """No HTTP: as many submits as one process gets through."""
    store = JobStore(connect_async(url, "bench"), Settings(redis_url=url))
    specs = iter([JobSpec(new_id("job"), "completion", MODEL, ((5,) * 64,), Sampling(16, 1)) for _ in range(count)])

    async def submit() -> None:
        for spec in specs:
            await store.submit(spec, limit=10_000_000, listed=True)

    cpu, begin = time.process_time(), time.perf_counter()
    await asyncio.gather(*(submit() for _ in range(callers)))
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    await store.close()
    return Rate(count / took, cpu / count * 1e6)


async def through_http(server: Server, path: str, body: bytes, callers: int, count: int) -> Rate:
    """So many callers on connections that stay open, each with its next request when it has its answer."""
    clients = [await Caller.connect(server.port, path, body) for _ in range(callers)]
    left = iter(range(count))

    async def call(client: Caller) -> None:
        for _ in left:
            await client.call(202)

    cpu, begin = server.cpu_s(), time.perf_counter()
    async with asyncio.timeout(120):
        await asyncio.gather(*(call(client) for client in clients))
    took, cpu = time.perf_counter() - begin, server.cpu_s() - cpu
    for client in clients:
        client.close()
    return Rate(count / took, cpu / count * 1e6)


def median(values: list[float], digits: int = 0) -> str:
    """With the spread."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(name: str, callers: int, runs: list[Rate]) -> str:
    """One line of the table."""
    return f"| {name} | {callers} | {median([run.per_s for run in runs])} | {median([run.us for run in runs])} |"


def store_rows(folder: Path, args: argparse.Namespace) -> None:
    """A Redis of its own for every round."""
    for callers in args.callers:
        runs = []
        for number in range(args.rounds):
            with own_redis(folder / f"redis-{callers}-{number}") as url:
                runs.append(uvloop.run(through_store(url, callers, args.submits)))
        print(row("JobStore.submit", callers, runs), flush=True)


def http_round(bare: Server, ours: Server, bodies: dict[str, bytes], callers: int, args: argparse.Namespace) -> None:
    """The rounds with so many callers, and their rows."""
    runs: dict[str, list[Rate]] = {name: [] for name in bodies}
    for number in range(args.rounds + 1):  # the first one warms up and is dropped
        for name, body in bodies.items():
            server = bare if name == BARE else ours
            made = uvloop.run(through_http(server, "/v1/jobs", body, callers, args.requests))
            if number:
                runs[name].append(made)
    for name, rates in runs.items():
        print(row(name, callers, rates))
    pairs = list(zip(runs[BARE], runs[OURS], strict=True))
    per_s = median([ours.per_s / theirs.per_s for theirs, ours in pairs], 2)
    us = median([ours.us / theirs.us for theirs, ours in pairs], 2)
    print(f"| ours / bare, per round | {callers} | {per_s} | {us} |", flush=True)


def http_rows(folder: Path, args: argparse.Namespace) -> None:
    """Bare and ours in turns, then what tokenising adds."""
    shared = {"model": MODEL, "max_tokens": 16, "temperature": 0.5, "metadata": {"user": "bench"}}
    ids = json.dumps(shared | {"prompt": [5] * 40}).encode()
    text = json.dumps(shared | {"prompt": WORDS}).encode()
    port = free_port()
    bare = Server(["uvicorn", "bench.ready_made:app", "--port", str(port), "--no-access-log"], port, {})
    try:
        bare.wait("/")
        with penstock(folder, 64) as (server, _):
            for callers in args.callers:
                http_round(bare, server, {BARE: ids, OURS: ids, TEXT: text}, callers, args)
    finally:
        bare.stop()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--submits", type=int, default=20_000, help="per round, without HTTP")
    parser.add_argument("--requests", type=int, default=3_000, help="per round, by HTTP")
    args = parser.parse_args()
    print(
        f"{args.rounds} rounds, {os.cpu_count()} cores, prompts of 64 and 40 token ids; the text has {len(WORDS)} characters\n"
    )
    print("| what | callers | per second, median (spread) | CPU µs per call |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store_rows(Path(folder), args)
        http_rows(Path(folder), args)


if __name__ == "__main__":
    main()
