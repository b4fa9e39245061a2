"""What a load's records say: quantiles, rates, goodput, and what went wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.load import Outcome
from bench.load_http import Record
from bench.usage import Used

#: A first token that never came: its request was given up, cut off or failed.
NEVER = math.inf
#: The fields of a summary that are quantiles.
QUANTILES = frozenset({"ttft", "gap", "tpot"})


@dataclass(frozen=True)
class Quantiles:
    """Of seconds. Infinite where that share of the requests never got it."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """One load against one system. Latencies count from the intended time.

    `ttft` is of all requests that were not turned away with 429; `gap` is the time between two pieces of text, `tpot`
    the time per token after the first; `within`: requests answered completely within the deadline; `late_p99`: how
    late the generator itself was.
    """

    asked: int
    complete: int
    rejected: int
    errors: dict[str, int]
    within: int
    good_until: float
    seconds: float
    tokens_per_s: float
    ttft: Quantiles
    gap: Quantiles
    tpot: Quantiles
    late_p99: float
    client_cpu: float

    @property
    def goodput(self) -> float:
        """Requests per second that were answered within the deadline, until the last of them was."""
        return self.within / self.good_until if self.within else 0.0

    @property
    def good_share(self) -> float:
        """Of all that were asked."""
        return self.within / self.asked


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def quantiles(values: Sequence[float]) -> Quantiles:
    """All three."""
    return Quantiles(*(quantile(values, share) for share in (0.5, 0.9, 0.99)))


def tokens_of(record: Record, asked: int) -> int:
    """By the server's own count; a server that gives none made all of them, or is taken at its pieces of text."""
    return record.tokens or (asked if record.finish == "length" else len(record.chunks))


def ttft(record: Record) -> float:
    """From the intended time."""
    return record.chunks[0] - record.intended if record.chunks else NEVER


def summarise(outcome: Outcome, max_tokens: int, deadline_s: float) -> Summary:
    """One load. Tokens are counted until the plan's end, or a burst's last answer: not while a closed loop runs out."""
    records = outcome.records
    complete = [record for record in records if not record.error]
    good = [record for record in complete if record.end - record.intended <= deadline_s]
    rejected = sum(record.status == 429 for record in records)
    last = max((record.chunks[-1] for record in records if record.chunks), default=0.0)
    seconds = outcome.plan.seconds or max(last, 0.001)
    return Summary(
        asked=len(records),
        complete=len(complete),
        rejected=rejected,
        errors=dict(Counter(record.error for record in records if record.error)),
        within=len(good),
        good_until=max([outcome.plan.seconds, *(record.end for record in good)]),
        seconds=seconds,
        tokens_per_s=sum(_tokens_until(record, max_tokens, seconds) for record in records) / seconds,
        ttft=quantiles([ttft(record) for record in records if record.status != 429]),
        gap=quantiles([after - before for record in records for before, after in pairwise(record.chunks)]),
        tpot=quantiles([_tpot(record, max_tokens) for record in complete if len(record.chunks) > 1]),
        late_p99=quantile([record.sent - record.intended for record in records if record.sent >= 0], 0.99),
        client_cpu=outcome.cpu_share,
    )


def _tokens_until(record: Record, asked: int, seconds: float) -> float:
    if not record.chunks:
        return 0.0
    in_time = sum(at <= seconds for at in record.chunks)
    return tokens_of(record, asked) * in_time / len(record.chunks)


def _tpot(record: Record, asked: int) -> float:
    return (record.chunks[-1] - record.chunks[0]) / max(1, tokens_of(record, asked) - 1)


@dataclass(frozen=True)
class Result:
    """One load against one system in one round, and what each part of the system used meanwhile."""

    system: str
    load: str
    round: int
    summary: Summary
    used: dict[str, Used]

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Result:
        """What `asdict` made of one."""
        summary: dict[str, Any] = dict(row["summary"])
        for name in QUANTILES:
            summary[name] = Quantiles(**summary[name])
        used = {role: Used(**value) for role, value in row["used"].items()}
        return cls(row["system"], row["load"], row["round"], Summary(**summary), used)
