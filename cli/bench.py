"""`penstock bench engine`: how fast an engine runs a model by itself, with no queue and no HTTP around it."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tasks.errors import BadConfig
from tasks.sampling import Sampling
from workers.engine.base import Engine, InvalidRequest, Request
from workers.engine.registry import EngineSpec, build


@dataclass(frozen=True)
class Load:
    """What is asked at once, and how often."""

    prompt: int
    new: int
    rounds: int
    temperature: float
    seed: int


@dataclass
class Measured:
    """Of all rounds with so many streams: tokens per second of each, seconds, and the largest used share of the cache."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    kv_used: float = 0.0


def bench(out: Console, name: str, spec: EngineSpec, streams: list[int], load: Load) -> None:
    """Load the model, run it, print a table. Raises `BadConfig`."""
    try:
        engine = build(name, spec)
    except (ValueError, OSError) as error:
        raise BadConfig(f"the engine {name} does not load {spec.path}: {error}") from None
    table = Table("streams", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "step p50 ms", "KV used", box=None)
    for column in table.columns:
        column.justify = "right"
    rng = random.Random(load.seed)
    with Progress(console=out, transient=True) as progress:
        task = progress.add_task("running", total=len(streams) * (load.rounds + 1))
        for count in streams:
            measured = Measured()
            for number in range(load.rounds + 1):
                _round(engine, rng, count, load, measured if number else Measured())  # the first one warms up
                progress.advance(task)
            table.add_row(*_row(count, measured))
    engine.close()
    out.print(
        f"{spec.path}: prompts of {load.prompt} tokens, answers of {load.new}, {load.rounds} rounds, seed {load.seed}"
    )
    out.print(table)


def _round(engine: Engine, rng: random.Random, streams: int, load: Load, measured: Measured) -> None:
    first: dict[str, float] = {}
    begin, tokens = time.perf_counter(), 0
    size = engine.profile.vocab_size
    for number in range(streams):
        prompt = [rng.randrange(size) for _ in range(load.prompt)]
        sampling = Sampling(load.new, load.seed + number, temperature=load.temperature, ignore_eos=True)
        try:
            engine.submit(Request(str(number), prompt, sampling))
        except InvalidRequest as error:
            raise BadConfig(str(error)) from None
    while engine.has_work():
        started = time.perf_counter()
        events = engine.step()
        now = time.perf_counter()
        measured.steps.append(now - started)
        measured.kv_used = max(measured.kv_used, engine.load().kv_used)
        for event in events:
            first.setdefault(event.rid, now - begin)
            tokens += len(event.tokens)
            if event.error:
                raise BadConfig(f"the engine failed: {event.error}")
    measured.rates.append(tokens / (time.perf_counter() - begin))
    measured.first += first.values()


def _row(streams: int, measured: Measured) -> list[str]:
    rates, first = sorted(measured.rates), sorted(measured.first)
    spread = f"{statistics.median(rates):.0f} ({rates[0]:.0f}-{rates[-1]:.0f})"
    p50, p99 = first[len(first) // 2], first[min(len(first) - 1, len(first) * 99 // 100)]
    step = statistics.median(measured.steps)
    return [
        str(streams),
        spread,
        f"{p50 * 1000:.0f}",
        f"{p99 * 1000:.0f}",
        f"{step * 1000:.1f}",
        f"{measured.kv_used:.0%}",
    ]
