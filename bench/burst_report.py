"""What the burst scene tells: the fate of every request, latencies by class, and how true the predicted waits were."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import plots
from bench.compare_report import ms
from bench.load import Outcome
from bench.load_http import GAVE_UP, Record
from bench.load_report import quantile, quantiles, ttft
from bench.pools import System
from bench.usage import Used

TRICKLE, BURST = "interactive", "burst"
#: When the burst comes: the trickle before it shows what an empty pool gives.
BURST_AT_S = 5.0


@dataclass(frozen=True)
class Fates:
    """What became of the requests of one class.

    `refused_silent`: 429 without Retry-After. `given_up`: the client stopped waiting for the end of an answer that had
    begun. `lost`: nothing came, or the answer was cut off without a word.
    """

    asked: int
    complete: int
    refused: int
    refused_silent: int
    broken: int
    given_up: int
    lost: int
    kinds: dict[str, int]


def fates(records: Sequence[Record]) -> Fates:
    """Every request is in one of them. An error that the server named is broken, silence is lost."""
    refused = [record for record in records if record.status == 429]
    errors = [record for record in records if record.error and record.status != 429]
    given_up = [record for record in errors if record.error == GAVE_UP]
    named = [record for record in errors if record.error.startswith(("HTTP", "error in the stream"))]
    return Fates(
        asked=len(records),
        complete=sum(not record.error for record in records),
        refused=len(refused),
        refused_silent=sum(not record.retry_after for record in refused),
        broken=len(named),
        given_up=len(given_up),
        lost=len(errors) - len(given_up) - len(named),
        kinds=dict(Counter(record.error for record in errors)),
    )


@dataclass(frozen=True)
class Prediction:
    """The told wait beside the real one, in seconds: of all that were told one, and got a token."""

    told: int
    absolute: list[float]
    relative: list[float]
    bias: float


def prediction(records: Sequence[Record]) -> Prediction:
    """The real wait goes from the moment the answer's head came, with the prediction in it, to the first token.

    The relative error is of real waits over a second: below, it says nothing.
    """
    pairs = [
        (record.eta_s, record.chunks[0] - record.head) for record in records if record.eta_s >= 0 and record.chunks
    ]
    return Prediction(
        told=len(pairs),
        absolute=[abs(told - real) for told, real in pairs],
        relative=[abs(told - real) / real for told, real in pairs if real > 1],
        bias=quantile([told - real for told, real in pairs], 0.5),
    )


def report(system: System, outcome: Outcome, used: dict[str, Used]) -> None:
    """The tables of one system."""
    trickle, crowd = ([record for record in outcome.records if record.tag == tag] for tag in (TRICKLE, BURST))
    over = max(record.end for record in crowd)
    classes = {
        "interactive, before": [record for record in trickle if record.intended < BURST_AT_S],
        "interactive, beside the burst": [record for record in trickle if BURST_AT_S <= record.intended <= over],
        "burst": crowd,
    }
    print(f"### {system.name}\n")
    report_fates(classes)
    heads = quantiles([record.head - record.intended for record in crowd if record.head >= 0])
    print(
        f"\nA request of the burst heard that it was accepted or refused after {ms(heads.p50)} ms (p50), {ms(heads.p99)} ms"
    )
    print(
        f"(p99); refusals within {refusals(crowd)}. The last one ended {over - BURST_AT_S:.1f} s after the burst began."
    )
    late = quantile([record.sent - record.intended for record in outcome.records if record.sent >= 0], 0.99)
    print(f"Load generator: {outcome.cpu_share:.0%} of a core, late by {ms(late)} ms at p99.")
    cpu = ", ".join(f"{role} {each.cpu_s:.1f} s and {each.peak_rss / 1e6:.0f} MB" for role, each in used.items())
    print(f"Processes, CPU and peak RSS: {cpu}.\n")
    report_prediction({TRICKLE: trickle, BURST: crowd})


def report_fates(classes: dict[str, list[Record]]) -> None:
    """One line for each class, and what went wrong."""
    print(
        "| class | asked | complete | 429 | without Retry-After | named errors | client gave up | lost "
        "| TTFT p50 / p90 / p99 ms |\n|---|---|---|---|---|---|---|---|---|"
    )
    kinds = Counter[str]()
    for name, records in classes.items():
        fate = fates(records)
        kinds.update(fate.kinds)
        first = quantiles([ttft(record) for record in records if record.status != 429])
        print(
            f"| {name} | {fate.asked} | {fate.complete} | {fate.refused} | {fate.refused_silent} | {fate.broken} "
            f"| {fate.given_up} | {fate.lost} | {ms(first.p50)} / {ms(first.p90)} / {ms(first.p99)} |"
        )
    print(f"\nErrors: {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none'}.")


def refusals(records: Sequence[Record]) -> str:
    """How quickly a client was told no."""
    took = [record.end - record.intended for record in records if record.status == 429]
    return f"{ms(quantile(took, 0.5))} ms (p50), {ms(quantile(took, 0.99))} ms (p99)" if took else "- (none)"


def report_prediction(by_class: dict[str, list[Record]]) -> None:
    """How well the wait was predicted."""
    if not any(record.eta_s >= 0 for records in by_class.values() for record in records):
        print("No request was told how long it will wait.\n")
        return
    print(
        "| told eta_s | requests | absolute error p50 / p90 s | relative error of waits over 1 s p50 / p90 | told - real, p50 s |"
    )
    print("|---|---|---|---|---|")
    for tag, records in by_class.items():
        said = prediction(records)
        print(
            f"| {tag} | {said.told} | {quantile(said.absolute, 0.5):.2f} / {quantile(said.absolute, 0.9):.2f} "
            f"| {percent(quantile(said.relative, 0.5))} / {percent(quantile(said.relative, 0.9))} | {said.bias:+.2f} |"
        )
    print()


def percent(share: float) -> str:
    """A share; none of nothing."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def draw(name: str, outcome: Outcome, folder: Path) -> Path:
    """Each class's time to first token over the time of the request: the p50 of each second."""
    series: dict[str, list[tuple[float, float]]] = {}
    for tag in (TRICKLE, BURST):
        seconds: dict[int, list[float]] = {}
        for record in outcome.records:
            if record.tag == tag and record.chunks:
                seconds.setdefault(int(record.chunks[0]), []).append(ttft(record))
        series[tag] = [(float(at), quantile(values, 0.5)) for at, values in sorted(seconds.items())]
    title = f"Time to first token by the second that it came in, p50: {name}"
    return plots.save(folder, f"burst-{name.replace(' ', '-')}", plots.lines(title, "s", "second of the scene", series))
