"""The constants of a step, from the real engine.

Batches of several sizes and lengths run through the engine of `bench/engine.py`, each step is timed, and what was in it is
known from the schedule (`simulate_engine.Batch`): the engine must give its first tokens in just the steps that the
schedule says. Least squares on the relative error give the four constants; a part that would be negative is left out.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.simulate_engine import Batch, Sequence, StepCost

#: Sequences at once, tokens of each prompt, tokens of each answer.
RUNS = [(1, 16, 40), (1, 400, 24), (4, 32, 32), (8, 200, 32), (16, 24, 32), (16, 300, 24), (32, 64, 32), (64, 24, 32), (64, 150, 24)]  # fmt: skip
BUDGET = 512


@dataclass(frozen=True)
class Step:
    """One kind of step: what was in it, and how long it took (seconds)."""

    decoding: int
    prompt: int
    keys: float
    seconds: float

    @property
    def parts(self) -> tuple[float, float, float, float]:
        """What the four constants are multiplied with."""
        return 1.0, float(self.decoding), float(self.prompt), self.keys / 1000


@dataclass(frozen=True)
class Fit:
    """The constants, and the relative errors of the steps that they were fitted to: median and 90th percentile."""

    cost: StepCost
    median: float
    p90: float
    steps: int


def measure(engine: Any, vocabulary: int, rounds: int, seed: int = 0) -> Iterator[Step]:
    """Each kind of step of `RUNS`; the seconds are the median of the rounds."""
    rng = random.Random(seed)
    for streams, prompt, answer in RUNS:
        _timed(engine, rng, vocabulary, streams, prompt, answer)  # warms up
        found = [_timed(engine, rng, vocabulary, streams, prompt, answer) for _ in range(rounds)]
        for same in zip(*found, strict=True):
            yield Step(same[0].decoding, same[0].prompt, same[0].keys, statistics.median(each.seconds for each in same))


def _timed(engine: Any, rng: random.Random, vocabulary: int, streams: int, prompt: int, answer: int) -> list[Step]:
    """All steps of one batch, which begins and ends with an idle engine."""
    from tasks.sampling import Sampling
    from workers.engine.base import Request

    sampling = Sampling(max_tokens=answer, seed=0, temperature=0.0, ignore_eos=True)
    batch, steps = Batch(BUDGET), []
    for number in range(streams):
        ids = [rng.randrange(vocabulary) for _ in range(prompt)]
        engine.submit(Request(str(number), ids, sampling))
        batch.add(Sequence(prompt, answer))
    while engine.has_work():
        began = time.perf_counter()
        events = engine.step()
        seconds = time.perf_counter() - began
        decoding, keys, computed = batch.decoding, batch.keys, batch.plan()[1]
        first, _ = batch.advance(1, computed)
        if sum(event.index == 0 for event in events) != len(first):
            raise RuntimeError("the engine's schedule is not the one that the model has")
        steps.append(Step(decoding, computed, keys, seconds))
    return steps


def fit(steps: list[Step], lanes: int = 64) -> Fit:
    """Least squares; each step counts by its relative error."""
    parts, seconds = np.array([step.parts for step in steps]), np.array([step.seconds for step in steps])
    used = [0, 1, 2, 3]
    while True:
        found, *_ = np.linalg.lstsq(parts[:, used] / seconds[:, None], np.ones(len(steps)), rcond=None)
        if found.min() >= 0:
            break
        used.pop(int(found.argmin()))
    constants = np.zeros(4)
    constants[used] = found
    errors = np.abs(parts @ constants / seconds - 1)
    fixed, sequence, prompt, context = constants.tolist()
    cost = StepCost(fixed, sequence, prompt, context, BUDGET, lanes)
    return Fit(cost, float(np.median(errors)), float(np.quantile(errors, 0.9)), len(steps))


def measured_fit(rounds: int = 5, threads: int = 1, shape: str = "llama-s", lanes: int = 64) -> Fit:
    """Of the engine "transformers" on a random model of `contenders.SHAPES`."""
    import torch

    from bench.contenders import Ours, random_model

    torch.set_num_threads(threads)
    model = random_model(shape)
    ours = Ours(model, 64, 65536)
    try:
        return fit(list(measure(ours.engine, min(4096, model.config.vocab_size), rounds)), lanes)
    finally:
        ours.close()


def rows(found: Fit) -> Iterator[str]:
    """A Markdown table of the constants."""
    cost = found.cost
    yield "| constant of a step | ms |\n|---|---|"
    yield f"| each step | {cost.fixed * 1e3:.3f} |"
    yield f"| each sequence that decodes | {cost.sequence * 1e3:.4f} |"
    yield f"| each prompt token | {cost.prompt * 1e3:.4f} |"
    yield f"| each thousand keys that are read | {cost.context * 1e3:.4f} |"
    yield f"\nRelative error over {found.steps} kinds of step: median {found.median:.1%}, 90th percentile {found.p90:.1%}."
