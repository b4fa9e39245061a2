"""The table: what ran, what struck, what was broken, how long it took to go on. And whether that is green."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.audit import COLUMNS, Finding
from chaos.circumstances import RECOVERY_S, Recovery, Sky
from chaos.prompts import LONG
from chaos.record import Account

#: What a full run must reach, so that its zeros mean something; shorter ones only say what they reached.
FULL_MINUTES = 20
JOBS, FAULTS, EACH, LONG_SHARE, BUSY_SHARE = 5_000, 200, 10, 0.5, 0.8
SHOWN = 40
#: What a Redis that loses its last writes may cost: it is measured, and red is only what goes beyond.
MEASURED = {"taken back"}


@dataclass
class Tally:
    """The sums of a run. Findings are kept whole: each is a bug."""

    kinds: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    long: int = 0
    tokens: int = 0
    events: int = 0
    refused: int = 0
    unanswered: int = 0

    def add(self, account: Account, findings: Sequence[Finding], sky: Sky, tokens: int = 0) -> None:
        """One client's account, judged; `tokens` were logged for it."""
        self.findings += findings
        self.errors.update((shown.where, shown.code, sky.allows(shown)) for shown in account.shown)
        self.unanswered += account.unanswered
        if not account.job:
            self.refused += 1
            return
        self.known |= {account.job, *account.other_ids}
        self.kinds[account.kind] += 1
        self.models[account.ask.model] += 1
        self.long += tokens >= LONG
        self.tokens += tokens
        self.events += sum(len(segment.seen) for segment in account.segments)

    @property
    def jobs(self) -> int:
        """Accepted ones."""
        return self.kinds.total()

    def counts(self) -> Counter[str]:
        """Findings by column: one job counts once in each."""
        seen = {(one.column, one.job or one.text) for one in self.findings}
        return Counter(column for column, _ in seen)


@dataclass(frozen=True)
class Run:
    """Everything that the report says. `kinds` maps each fault that was to strike to whether it strikes workers."""

    command: str
    seed: int
    minutes: float
    lease_s: float
    step_timeout_s: float
    appendfsync: str
    tally: Tally
    struck: Sequence[Any]
    kinds: Mapping[str, bool]
    missed: Mapping[str, int] = field(default_factory=dict)
    bugs: Sequence[str] = ()
    lossy: bool = False

    def fired(self) -> Counter[str]:
        """How often each kind struck."""
        return Counter(one.kind for one in self.struck)

    def never(self) -> list[str]:
        """Kinds that never did."""
        return [kind for kind in self.kinds if not self.fired()[kind]]

    def red(self) -> list[Finding]:
        """The findings that nothing excuses."""
        return [one for one in self.tally.findings if not (self.lossy and one.column in MEASURED)]

    def broken(self) -> Iterator[str]:
        """The columns that should be zero and are not."""
        for column, count in self.tally.counts().items():
            if not (self.lossy and column in MEASURED):
                yield f"{column}: {count}"

    def reasons(self) -> Iterator[str]:
        """Why it is red."""
        yield from self.broken()
        if self.bugs:
            yield f"{len(self.bugs)} clients failed in a way that nobody foresaw"
        if self.never():
            yield f"never fired: {', '.join(self.never())}"
        if self.minutes >= FULL_MINUTES:
            yield from (f"not reached: {text}" for text, met in self.bars() if not met)

    def bars(self) -> Iterator[tuple[str, bool]]:
        """What a full run must reach."""
        fired, jobs = self.fired(), self.tally.jobs
        yield f"{jobs} jobs, {JOBS} wanted", jobs >= JOBS
        yield f"{fired.total()} faults, {FAULTS} wanted", fired.total() >= FAULTS
        least = min((fired[kind] for kind in self.kinds), default=0)
        yield f"each fault at least {least} times, {EACH} wanted", least >= EACH
        share = self.tally.long / jobs if jobs else 0.0
        yield f"{share:.0%} of the jobs with {LONG} tokens or more, {LONG_SHARE:.0%} wanted", share >= LONG_SHARE
        workers = [one for one in self.struck if self.kinds.get(one.kind)]
        busy = sum(one.busy for one in workers) / len(workers) if workers else 0.0
        yield f"{busy:.0%} of worker faults on a busy worker, {BUSY_SHARE:.0%} wanted", busy >= BUSY_SHARE
        yield self._recovered("worker_kill", "a worker's SIGKILL", self.lease_s + RECOVERY_S)
        yield self._recovered("step_hang", "a hung step", self.step_timeout_s + self.lease_s + RECOVERY_S)

    def _recovered(self, kind: str, after: str, bound: float) -> tuple[str, bool]:
        seconds = [one.seconds for one in self.tally.recoveries if one.kind == kind and one.alone]
        if kind not in self.kinds:
            return f"no {kind} was to strike", True
        if not seconds:
            return f"no recovery after {after} without another fault", False
        figures = f"p50 {percentile(seconds, 50):.1f}, p99 {percentile(seconds, 99):.1f}, max {max(seconds):.1f} s"
        text = f"from {after} to the next token {figures}, {bound:.1f} s at most, {len(seconds)} jobs, no other fault"
        return text, max(seconds) <= bound


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank; NaN of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share / 100 * len(ranked)) - 1)] if ranked else math.nan


def lines(run: Run) -> Iterator[str]:
    """The report, as Markdown."""
    tally, counts = run.tally, run.tally.counts()
    yield f"`{run.command}`: seed {run.seed}, {run.minutes:g} minutes, appendfsync {run.appendfsync}, lease {run.lease_s:g} s"
    yield ""
    all_s = [one.seconds for one in tally.recoveries if one.kind == "worker_kill"]
    yield from _table(
        ["jobs", "faults", *COLUMNS, "recovery p50", "p99"],
        [[tally.jobs, run.fired().total(), *(counts[column] for column in COLUMNS), *_seconds(all_s, 50, 99)]],
    )
    yield ""
    yield from _table(
        ["fault", "fired", "on a busy worker", "missed", "recoveries", "p50", "p99", "alone", "p50", "p99"],
        _faults(run),
    )
    yield ""
    yield from _table(["clients", "jobs"], [[kind, count] for kind, count in tally.kinds.most_common()])
    yield ""
    models = ", ".join(f"{count} of {model}" for model, count in tally.models.most_common())
    yield f"{models}; {tally.tokens} tokens logged, {tally.events} events read; {tally.refused} never accepted."
    yield ""
    shown = [
        [where, code, "yes" if allowed else "NO", count]
        for (where, code, allowed), count in sorted(tally.errors.items())
    ]
    yield from _table(["error shown at", "code", "explained by a fault", "times"], shown)
    yield ""
    yield from (f"- {text}{'' if met else ' (not reached)'}" for text, met in run.bars())
    yield ""
    yield from _verdict(run)


def _verdict(run: Run) -> Iterator[str]:
    red = run.red()
    yield from (f"- {one.column}: {one.job} {one.text}" for one in red[:SHOWN])
    if len(red) > SHOWN:
        yield f"- and {len(red) - SHOWN} more"
    yield from (f"- bug: {text}" for text in run.bugs[:5])
    reasons = list(run.reasons())
    yield f"RED: {'; '.join(reasons)}" if reasons else "GREEN"


def _faults(run: Run) -> list[list[Any]]:
    fired, busy = run.fired(), Counter(one.kind for one in run.struck if one.busy)
    times: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    for one in run.tally.recoveries:
        times[one.kind].append(one.seconds)
        if one.alone:
            alone[one.kind].append(one.seconds)
    return [
        [
            kind,
            fired[kind],
            busy[kind] if on_worker else "",
            run.missed.get(kind, 0) or "",
            len(times[kind]) or "",
            *_seconds(times[kind], 50, 99),
            len(alone[kind]) or "",
            *_seconds(alone[kind], 50, 99),
        ]
        for kind, on_worker in run.kinds.items()
    ]


def _seconds(values: Sequence[float], *shares: float) -> list[str]:
    return [f"{percentile(values, share):.1f} s" if values else "" for share in shares]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
