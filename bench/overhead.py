"""What the pool costs beside its engine alone: tokens/s when it is full, and time to first token when it is idle.

Full: client → HTTP → Redis → Celery worker → engine → Redis → relay → SSE with `--streams` streams in flight, in rounds that
take turns with the same engine in a process of its own, on the same prompts and lengths of answers. *steady* counts from a
quarter of a round until no more is asked for, *whole* from the first request to the last token of the last answer.

Idle: one request after the other, through the pool and in the engine's own process, and where the time between goes; see
`bench/first_token.py`. All processes are its own, with one torch thread each, and end with it.

    python bench/overhead.py
    python bench/overhead.py --models llama-s --part full --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stream_client
from engine_alone import EngineAlone
from first_token import measure_first
from pool_rig import PoolRig, Served, prompt_of, served
from servers import own_redis
from stream_client import BINS_PER_S

PATH = "/v1/completions"


@dataclass
class Rates:
    """Tokens per second of every round, the cores that each part used, and tokens per CPU second of the engine's process,
    which a busy machine changes less than the clock."""

    steady: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    cores: dict[str, list[float]] = field(default_factory=dict)
    per_cpu_s: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any], refill_s: float, cpu_s: dict[str, float]) -> None:
        """One round."""
        first, last = int(refill_s / 4 * BINS_PER_S), int(refill_s * BINS_PER_S)
        steady = sum(tokens for at, tokens in result["bins"].items() if first <= int(at) < last)
        self.steady.append(steady * BINS_PER_S / (last - first))
        self.whole.append(result["tokens"] / result["last_s"])
        for part, seconds in cpu_s.items():
            self.cores.setdefault(part, []).append(seconds / result["last_s"])
        self.per_cpu_s.append(result["tokens"] / cpu_s["worker"])

    def row(self) -> str:
        """Its cells."""
        cores = ", ".join(f"{part} {statistics.median(values):.2f}" for part, values in self.cores.items())
        return f"{cell(self.steady)} | {cell(self.whole)} | {cell(self.per_cpu_s)} | {cores}"


def cell(values: Sequence[float], digits: int = 0) -> str:
    """Median and spread."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratios(pool: Sequence[float], engine: Sequence[float]) -> str:
    """Round by round."""
    return cell([100 * mine / other for mine, other in zip(pool, engine, strict=True)], 1) + " %"


def bodies(rng: random.Random, model: Served, tokens: int, count: int) -> list[str]:
    """Requests that share nothing, with answers of half to one and a half times `tokens`, so that they end one by one."""
    same = {"model": model.name, "temperature": 0, "ignore_eos": True, "stream": True}
    same |= {"stream_options": {"include_usage": True}}
    made = []
    for _ in range(count):
        most = rng.randint(tokens // 2, tokens * 3 // 2)
        made.append(json.dumps(same | {"prompt": prompt_of(rng, model, most), "max_tokens": most}))
    return made


def through_pool(rig: PoolRig, order: dict[str, Any], rates: Rates | None) -> None:
    """One round through the pool; nothing may be missing."""
    before = rig.cpu_s()
    result = stream_client.finish(stream_client.start(order | {"path": PATH, "port": rig.port}))
    if result["errors"] or result["doubled"]:
        raise SystemExit(f"the pool failed: {result['errors']} errors, {result['example']}\n{rig.tail()}")
    if rates is not None:
        used = {part: seconds - before[part] for part, seconds in rig.cpu_s().items()} | {"client": result["cpu_s"]}
        rates.add(result, order["refill_s"], used)


def in_engine(engine: EngineAlone, order: dict[str, Any], rates: Rates | None) -> None:
    """The same without a pool."""
    result = engine.ask(order | {"do": "closed"})
    if rates is not None:
        rates.add(result, order["refill_s"], {"worker": result["cpu_s"]})


def measure_full(rig: PoolRig, engine: EngineAlone, model: Served, options: argparse.Namespace) -> None:
    """All rounds of one model; the first, which warms up, is short and does not count."""
    rng = random.Random(options.seed)
    pool, alone = Rates(), Rates()
    for number in range(options.rounds + 1):
        refill_s = options.seconds if number else min(5.0, options.seconds)
        # more than can be made: an engine here makes at most 20,000 tokens/s
        count = options.streams + int(20_000 * refill_s / options.tokens)
        order = {"streams": options.streams, "refill_s": refill_s}
        order["bodies"] = bodies(rng, model, options.tokens, count)
        turns = [(in_engine, engine, alone), (through_pool, rig, pool)]
        for run, what, rates in turns if number % 2 else turns[::-1]:
            run(what, order, rates if number else None)  # type: ignore[operator]
    print(f"| {model.name} | engine alone | {alone.row()} |")
    print(f"| {model.name} | pool | {pool.row()} |")
    pairs = (pool.steady, alone.steady), (pool.whole, alone.whole), (pool.per_cpu_s, alone.per_cpu_s)
    print(f"| {model.name} | pool / engine | {' | '.join(ratios(*pair) for pair in pairs)} | |", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["full", "idle", "both"], default="both")
    parser.add_argument("--models", nargs="+", default=["llama-s", "demo"], help="for the full pool (default both)")
    parser.add_argument("--idle-models", nargs="+", default=["fake", "llama-s"], help="for the idle one (default both)")
    parser.add_argument("--streams", type=int, default=64, help="streams in flight, and lanes (default 64)")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, on average (default 256)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a round asks for more (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="of each (default 5)")
    parser.add_argument("--requests", type=int, default=300, help="on the idle pool (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Measure, and print tables in Markdown."""
    options = parse()
    print(f"{os.cpu_count()} cores, seed {options.seed}, {options.rounds} rounds of {options.seconds:g} s,", end=" ")
    print(f"{options.streams} streams, answers of {options.tokens} tokens on average, one torch thread", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if options.part != "idle":
            print("\n| model | through | steady tokens/s, median (spread) | whole | per CPU second | cores used |")
            print("|---|---|---|---|---|---|")
            for model in options.models:
                run(folder, model, options, "full")
        if options.part != "full":
            for model in options.idle_models:
                run(folder, model, options, "idle")


def run(folder: Path, name: str, options: argparse.Namespace, part: str) -> None:
    """One model in a pool of its own."""
    place = folder / f"{part}-{name}"
    model = served(name, place, options.streams)
    with own_redis(place / "redis") as url, PoolRig(place, url, [model]) as rig:
        rig.start_api()
        rig.start_workers(model.name)
        engine = EngineAlone(place / "models.toml", model.name, rig.environ)
        try:
            rig.wait_ready()
            if part == "full":
                measure_full(rig, engine, model, options)
            else:
                measure_first(rig, engine, model, options.requests, options.seed)
        finally:
            engine.close()


if __name__ == "__main__":
    main()
