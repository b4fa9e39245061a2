"""What a simulated pool is asked for: arrivals drawn from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tasks.jobs import Priority

#: Half of the load is one tenant's, the rest is shared by nine.
TENANTS: Mapping[str, float] = {"greedy": 0.5} | {f"tenant-{number}": 0.5 / 9 for number in range(1, 10)}
BANDS: Mapping[Priority, float] = {"interactive": 0.2, "normal": 0.5, "batch": 0.3}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when, and of how many tokens. `limit` is its max_tokens: what the line is told of its answer."""

    at: float
    prompt: int
    answer: int
    tenant: str = "default"
    priority: Priority = "normal"
    limit: int = 0


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers: log-normal with these medians and this spread, cut at the ends."""

    prompt: float = 400.0
    answer: float = 200.0
    spread: float = 0.8
    most: int = 4096

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """A prompt and an answer."""
        return self._draw(rng, self.prompt), self._draw(rng, self.answer)

    def _draw(self, rng: random.Random, median: float) -> int:
        return max(1, min(self.most, round(median * math.exp(rng.gauss(0.0, self.spread)))))

    def means(self, draws: int = 20_000) -> tuple[float, float]:
        """The mean prompt and the mean answer."""
        rng = random.Random(0)
        drawn = [self.draw(rng) for _ in range(draws)]
        return sum(prompt for prompt, _ in drawn) / draws, sum(answer for _, answer in drawn) / draws


@dataclass(frozen=True)
class Mix:
    """Who asks, how urgently, and for how much."""

    lengths: Lengths = field(default_factory=Lengths)
    tenants: Mapping[str, float] = field(default_factory=lambda: TENANTS)
    bands: Mapping[Priority, float] = field(default_factory=lambda: BANDS)

    def at(self, times: Iterator[float], rng: random.Random) -> list[Arrival]:
        """A request at each of these times."""
        tenants, shares = list(self.tenants), list(self.tenants.values())
        bands, parts = list(self.bands), list(self.bands.values())
        made = []
        for time in times:
            prompt, answer = self.lengths.draw(rng)
            tenant, band = rng.choices(tenants, shares)[0], rng.choices(bands, parts)[0]
            made.append(Arrival(time, prompt, answer, tenant, band, self.lengths.most))
        return made


def poisson(rng: random.Random, rate: float, seconds: float, start: float = 0.0) -> Iterator[float]:
    """Times at `rate` per second, independent of each other."""
    at = start + rng.expovariate(rate)
    while at < start + seconds:
        yield at
        at += rng.expovariate(rate)


def burst(rng: random.Random, jobs: int, seconds: float, start: float = 0.0) -> Iterator[float]:
    """So many times, spread evenly at random over some seconds."""
    yield from sorted(start + rng.random() * seconds for _ in range(jobs))
