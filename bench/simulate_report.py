"""Figures of simulated jobs: percentiles, fairness, and Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.simulate_job import Job


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed; not a number if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything. Of nothing it is 1."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


@dataclass(frozen=True)
class Tail:
    """Times to first token of some jobs, in seconds. A job that never got one counts as infinite."""

    jobs: int
    p50: float
    p99: float
    p999: float

    @classmethod
    def of(cls, jobs: Iterable[Job], relay: float) -> Tail:
        """`relay`: what a token takes to its client."""
        waits = [_ttft(job) + relay for job in jobs]
        return cls(len(waits), *(percentile(waits, percent) for percent in (50, 99, 99.9)))

    def cells(self) -> str:
        """Three cells of a row."""
        return " | ".join(seconds_text(value) for value in (self.p50, self.p99, self.p999))


def _ttft(job: Job) -> float:
    first = job.first
    return math.inf if math.isnan(first) else first - job.arrival.at


def seconds_text(value: float) -> str:
    """As in 0.045, 3.2 or 180."""
    if not math.isfinite(value):
        return "never" if math.isinf(value) else "-"
    return f"{value:.3f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def groups(jobs: Iterable[Job], key: str) -> Iterator[tuple[str, list[Job]]]:
    """Accepted jobs by their `tenant` or `priority`, in order of the names."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.position is not None:
            found.setdefault(getattr(job.arrival, key), []).append(job)
    yield from sorted(found.items())


def table(head: str, rows: Iterable[str]) -> Iterator[str]:
    """A Markdown table; each row is its cells joined by ` | `."""
    yield f"| {head} |"
    yield "|" + "---|" * (head.count("|") + 1)
    for row in rows:
        yield f"| {row} |"
