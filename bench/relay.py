"""CPU of the API per streamed token, beside applications that only stream bytes which are ready; and memory per stream.

Each contender is one process of its own behind uvicorn. A round opens all streams, sends every one of them the same
number of tokens at a fixed pace, and checks what arrived: the text, the order and the number of the ids. Rounds take
turns. CPU is the process time of the server from the first token to the last; clients and Redis are other processes.

    python bench/relay.py --streams 1000 --rounds 5
    python bench/relay.py --streams 1000 --rounds 1 --open 10000     # and 10,000 open streams on one process

`joined` is the share of tokens that came in an event with others, because their stream was behind: it should be 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import uvloop
from clients import Stream, allow_many_connections, open_all
from scripted import MODEL, ScriptedWorker, Server, penstock
from servers import free_port

TEXT = " token"
ROUND_S, OPEN_S = 120.0, 900.0
SSE, PLAIN, OURS = "sse-starlette, ready-made bytes", "StreamingResponse, ready-made bytes", "penstock"


@dataclass(frozen=True)
class Round:
    """Microseconds of CPU per token, memory in MB with all streams open, the share of tokens that were joined."""

    us: float
    memory_mb: float
    joined: float


def check(streams: list[Stream], tokens: int) -> float:
    """Exits unless every stream is exact. Returns the share of tokens that were joined to others."""
    events = 0
    for stream in streams:
        text, ids = stream.text()
        if text != TEXT * tokens:
            raise SystemExit(f"a stream is not exact: {len(text)} characters instead of {len(TEXT) * tokens}")
        if any(later <= earlier for earlier, later in pairwise(ids)):
            raise SystemExit("ids are out of order")
        events += stream.pieces
    return 1 - events / (tokens * len(streams))


async def penstock_round(server: Server, worker: ScriptedWorker, count: int, tokens: int, pause_s: float) -> Round:
    """Real jobs, that a scripted worker claims and writes."""
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello"}}],"stream":true,"max_tokens":2000}}'
    streams = await open_all(server.port, "POST /v1/chat/completions", body, count)
    await asyncio.to_thread(worker.claim, count)
    await asyncio.gather(*(stream.begun for stream in streams))
    memory, before = server.memory_mb(), server.cpu_s()
    due = time.monotonic()
    for _ in range(tokens):
        due += pause_s
        await asyncio.to_thread(worker.say, TEXT)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*(stream.have(TEXT, tokens) for stream in streams))
    cpu = server.cpu_s() - before
    await asyncio.to_thread(worker.end)
    await asyncio.gather(*(stream.done for stream in streams))
    return Round(cpu / tokens / count * 1e6, memory, check(streams, tokens))


async def bare_round(server: Server, path: str, count: int, tokens: int, pause_s: float) -> Round:
    """Ticks instead of jobs."""
    target = f"GET {path}?count={tokens}&text={TEXT.replace(' ', '%20')}"
    streams = await open_all(server.port, target, "", count)
    await asyncio.gather(*(stream.begun for stream in streams))
    memory, before = server.memory_mb(), server.cpu_s()
    due = time.monotonic()
    for _ in range(tokens):
        due += pause_s
        [ticked] = await open_all(server.port, "POST /tick", "{}", 1)
        await ticked.begun
        ticked.close()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*(stream.done for stream in streams))
    cpu = server.cpu_s() - before
    return Round(cpu / tokens / count * 1e6, memory, check(streams, tokens))


def table(rounds: dict[str, list[Round]], streams: int) -> str:
    """Medians and spreads, and ratios within each round."""
    lines = ["| server | CPU µs per token, median (spread) | joined | MB |", "|---|---|---|---|"]
    for name, runs in rounds.items():
        us = [run.us for run in runs]
        joined = statistics.median(run.joined for run in runs)
        memory = max(run.memory_mb for run in runs)
        lines.append(
            f"| {name} | {statistics.median(us):.1f} ({min(us):.1f}-{max(us):.1f}) | {joined:.1%} | {memory:.0f} |"
        )
    for name in (SSE, PLAIN):
        ratios = [ours.us / theirs.us for ours, theirs in zip(rounds[OURS], rounds[name], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        lines.append(f"| penstock / {name.partition(',')[0]}, per round | {spread} | | |")
    return f"{streams} streams\n\n" + "\n".join(lines)


async def bounded(run: Awaitable[Round], limit_s: float = ROUND_S) -> Round:
    """A round that hangs is an error."""
    async with asyncio.timeout(limit_s):
        return await run


def compare(folder: Path, args: argparse.Namespace) -> None:
    """The rounds, and their table."""
    bare = Server(
        ["uvicorn", "bench.ready_made:app", "--port", (port := str(free_port())), "--no-access-log"], int(port), {}
    )
    rounds: dict[str, list[Round]] = {SSE: [], PLAIN: [], OURS: []}
    try:
        bare.wait("/")
        with penstock(folder, args.lanes) as (server, worker):
            idle_mb = server.memory_mb()
            what = args.streams, args.tokens, 1 / args.pace
            runs: dict[str, Callable[[], Round]] = {
                SSE: lambda: uvloop.run(bounded(bare_round(bare, "/sse", *what))),
                PLAIN: lambda: uvloop.run(bounded(bare_round(bare, "/plain", *what))),
                OURS: lambda: uvloop.run(bounded(penstock_round(server, worker, *what))),
            }
            for number in range(args.rounds + 1):  # the first one warms up and is dropped
                for name, run in runs.items():
                    if (made := run()) and number:
                        rounds[name].append(made)
            print(table(rounds, args.streams))
            print(f"\npenstock without streams: {idle_mb:.0f} MB")
    finally:
        bare.stop()


def hold_open(folder: Path, args: argparse.Namespace) -> None:
    """Many streams on one fresh process."""
    with penstock(folder, args.lanes) as (server, worker):
        idle_mb = server.memory_mb()
        run = uvloop.run(bounded(penstock_round(server, worker, args.open, args.open_tokens, args.open_pause), OPEN_S))
        print(
            f"\n| open streams | MB with all open | MB at the end | MB idle | CPU µs per token | joined |\n|---|---|---|---|---|---|\n"
            f"| {args.open} | {run.memory_mb:.0f} | {server.memory_mb():.0f} | {idle_mb:.0f} | {run.us:.1f} | {run.joined:.1%} |"
        )


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=40, help="per stream")
    parser.add_argument("--pace", type=float, default=5.0, help="tokens per second and stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=64, help="jobs per step of the worker")
    parser.add_argument("--open", type=int, default=0, help="also so many streams on one process")
    parser.add_argument("--open-tokens", type=int, default=10)
    parser.add_argument("--open-pause", type=float, default=3.0, help="seconds between their tokens")
    args = parser.parse_args()
    allow_many_connections()
    print(f"{args.rounds} rounds, {args.tokens} tokens per stream, {args.pace} per second, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        if args.rounds:
            (Path(folder) / "compare").mkdir()
            compare(Path(folder) / "compare", args)
        if args.open:
            (Path(folder) / "open").mkdir()
            hold_open(Path(folder) / "open", args)


if __name__ == "__main__":
    main()
