"""Calibrates the model on a real pool, then checks it on runs that it was not calibrated on.

Calibration: bursts of several sizes give what a step costs more in a pool, where five processes share the machine, than
in a process of its own; requests that come while half of the lanes are busy give the delays around line and engine. The
check has arrivals of its own: Poisson, prompts and answers of many lengths, and a burst in the middle.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.servers import own_redis
from bench.simulate_engine import StepCost
from bench.simulate_job import Delays
from bench.simulate_line import Line
from bench.simulate_load import Arrival, poisson
from bench.simulate_pool import Pool
from bench.simulate_real import Real, Seen
from bench.simulate_report import percentile

PROMPT, ANSWER, LONG = 48, 96, 300


@dataclass(frozen=True)
class Calibration:
    """What the pool adds, and the steps as they are in it."""

    delays: Delays
    cost: StepCost
    extra_fixed: float
    extra_sequence: float


def calibrate(real: Real, cost: StepCost) -> Calibration:
    """From runs on a pool whose worker has `cost.lanes` lanes."""
    real.play([Arrival(0.0, PROMPT, 8)] * 4)  # warms up
    singles = real.play([Arrival(number * 0.7, PROMPT, 32) for number in range(12)])
    sizes = sorted({4, cost.lanes // 2, cost.lanes})
    bursts = {size: real.play([Arrival(0.0, PROMPT, ANSWER)] * size) for size in sizes}
    fixed, sequence = _extra(cost, {1: singles, **bursts})
    cost = cost.plus(fixed, sequence)
    full = bursts[cost.lanes]
    crowd = real.play([Arrival(0.0, PROMPT, 24 + number % 48) for number in range(3 * cost.lanes)])
    starts = sorted(each.started for each in crowd)[cost.lanes :]
    ends = sorted(each.finished for each in crowd)[: len(starts)]
    half = cost.lanes // 2
    busy = real.play([*[Arrival(0.0, PROMPT, LONG)] * half, *(Arrival(1.0 + n * 0.2, PROMPT, 8) for n in range(12))])
    callers = [each for each in busy if each.arrival.at and each.finished < min(one.finished for one in busy[:half])]
    claim = statistics.median(each.started - each.created for each in callers)
    keys = half * (PROMPT + LONG / 2)
    expected = cost.run(1, half, keys) / 2 + cost.run(1, half, keys, PROMPT)  # the rest of a step, then the prompt's
    delays = Delays(
        submit=statistics.median(each.created - each.arrival.at for each in callers),
        submit_gap=_gap([each.created for each in crowd]),
        claim=claim,
        ticket_gap=_gap([each.started for each in full]),
        free=max(0.0, statistics.median(start - end for start, end in zip(starts, ends, strict=True)) - claim),
        relay=max(_beyond(singles, cost.run(1, 0, 0, PROMPT)), _beyond(callers, expected), 0.0),
    )
    return Calibration(delays, cost, fixed, sequence)


def _beyond(seen: list[Seen], engine_s: float) -> float:
    """What it takes from a claim to the first token, beyond the engine's part."""
    return statistics.median(each.first - each.started for each in seen) - engine_s


def _gap(times: list[float]) -> float:
    """The mean distance of events that follow one another as fast as they can."""
    return (max(times) - min(times)) / (len(times) - 1)


def _extra(cost: StepCost, runs: dict[int, list[Seen]]) -> tuple[float, float]:
    """What a step costs more for itself and for each sequence, by the pace while all of a burst decode."""
    parts, more = [], []
    for size, seen in runs.items():
        pace, keys = (_single_pace if size == 1 else _burst_pace)(seen)
        parts.append((1.0, float(size)))
        more.append(pace - cost.run(1, size, keys))
    weights = np.array([1 / cost.run(1, size, 0) for size in runs])
    found, *_ = np.linalg.lstsq(np.array(parts) * weights[:, None], np.array(more) * weights, rcond=None)
    if found[1] < 0:
        found = np.array([np.average(more, weights=weights), 0.0])
    return float(found[0]), float(found[1])


def _single_pace(seen: list[Seen]) -> tuple[float, float]:
    """Seconds per step with one sequence, and the keys that it reads on average."""
    paces = [(each.chunks[-1] - each.first) / (each.arrival.answer - 1) for each in seen]
    return statistics.median(paces), PROMPT + seen[0].arrival.answer / 2


def _burst_pace(seen: list[Seen]) -> tuple[float, float]:
    """The same of a burst, from its last first token to its first last one."""
    begin, end = max(each.first for each in seen), min(each.chunks[-1] for each in seen)
    made, before = [], []
    for each in seen:
        tokens = each.arrival.answer / len(each.chunks)  # of one chunk: a relay in arrears joins some
        made.append(tokens * sum(begin < at <= end for at in each.chunks))
        before.append(tokens * sum(at <= begin for at in each.chunks))
    keys = sum(PROMPT + done + new / 2 for done, new in zip(before, made, strict=True))
    return (end - begin) / statistics.mean(made), keys


def arrivals(seed: int, rate: float, seconds: float, burst: int) -> list[Arrival]:
    """What the check asks for: no length and no distance as in the calibration."""
    rng = random.Random(seed)
    times = [*poisson(rng, rate, seconds), *[seconds / 2] * burst]
    return [Arrival(at, rng.randint(16, 200), rng.randint(16, 160)) for at in sorted(times)]


@dataclass(frozen=True)
class Figures:
    """What is compared, in seconds. `drain` is from the burst to the last answer of its size of requests."""

    ttft_p50: float
    ttft_p99: float
    drain: float


def observed(real: Real, asked: list[Arrival], seconds: float) -> Figures:
    """The real pool's."""
    seen = real.play(asked, seed=1)
    ends = [each.end for each in seen if each.arrival.at == seconds / 2]
    return _figures([each.ttft for each in seen], max(ends) - seconds / 2)


def modelled(calibration: Calibration, asked: list[Arrival], seconds: float) -> Figures:
    """The model's, on a Redis of its own."""
    with tempfile.TemporaryDirectory() as folder, own_redis(Path(folder)) as url:
        line = Line(url)
        jobs = Pool(line, calibration.cost, calibration.delays).run(asked)
        line.close()
    relay = calibration.delays.relay
    done = [(job.arrival.at, job.sequence) for job in jobs if job.sequence]
    ends = [sequence.ended + relay for at, sequence in done if at == seconds / 2]
    return _figures([sequence.first + relay - at for at, sequence in done], max(ends) - seconds / 2)


def _figures(ttft: list[float], drain: float) -> Figures:
    return Figures(percentile(ttft, 50), percentile(ttft, 99), drain)


def calibration_rows(found: Calibration) -> Iterator[str]:
    """A Markdown table of the delays."""
    yield "| measured once | ms |\n|---|---|"
    words = {
        "submit": "from a client until the job is in line",
        "submit_gap": "between two requests at one API process",
        "claim": "from being in line, a lane free, until it is claimed",
        "ticket_gap": "between two tickets at one worker",
        "free": "from an answer's end until its lane asks for a ticket",
        "relay": "from the end of a step until the client has its token",
    }
    for name, seconds in asdict(found.delays).items():
        yield f"| {words[name]} | {seconds * 1e3:.1f} |"
    yield f"| a step in the pool: more for each step | {found.extra_fixed * 1e3:.2f} |"
    yield f"| a step in the pool: more for each sequence | {found.extra_sequence * 1e3:.3f} |"


def comparison_rows(rounds: list[tuple[int, Figures, Figures]]) -> Iterator[str]:
    """A Markdown table: real, model and error of each figure, round by round; then the median errors."""
    names = {"ttft_p50": "TTFT p50", "ttft_p99": "TTFT p99", "drain": "drain of the burst"}
    yield "| seed | " + " | ".join(f"{name} real ms | model ms | error" for name in names.values()) + " |"
    yield "|---|" + "---|" * 9
    errors: dict[str, list[float]] = {name: [] for name in names}
    for seed, real, model in rounds:
        cells = []
        for name in names:
            ours, theirs = getattr(model, name), getattr(real, name)
            errors[name].append(ours / theirs - 1)
            cells.append(f"{theirs * 1e3:.0f} | {ours * 1e3:.0f} | {ours / theirs - 1:+.0%}")
        yield f"| {seed} | " + " | ".join(cells) + " |"
    medians = ", ".join(f"{names[name]} {statistics.median(found):+.0%}" for name, found in errors.items())
    yield f"\nMedian errors: {medians}."
