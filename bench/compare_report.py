"""The tables and plots of `bench/compare.py`: the median over the rounds of each figure, and the spread of the rates."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import plots
from bench.load_report import Quantiles, Result, Summary

Cell = list[Result]


def print_report(kept: dict[str, Any], folder: Path) -> None:
    """Markdown on stdout, SVG files in `folder`. `kept`: what `Comparison.keep` writes."""
    options, capacity = kept["options"], kept["capacity"]
    table = group([Result.from_json(row) for row in kept["results"]])
    print(
        f"Seed {options['seed']}, rounds {options['rounds']}, answers of {options['tokens']} tokens, penstock's capacity "
        f"{capacity:.1f} requests/s, deadline {options['deadline']:g} s, patience {options['patience']:g} s\n"
    )
    print_speed(table)
    print_outcomes(table)
    print_usage(table)
    for path in draw(table, folder):
        print(f"![{path.stem}](plots/{path.name})")


def group(results: Sequence[Result]) -> dict[str, dict[str, Cell]]:
    """By load, then by system, both in the order of the first round."""
    table: dict[str, dict[str, Cell]] = {}
    names = list(dict.fromkeys(result.system for result in results))
    for result in results:
        row = table.setdefault(result.load, {name: [] for name in names})
        row[result.system].append(result)
    return table


def median(cell: Cell, figure: Callable[[Summary], float]) -> float:
    """Over the rounds."""
    return statistics.median(figure(result.summary) for result in cell) if cell else math.nan


def print_speed(table: dict[str, dict[str, Cell]]) -> None:
    """Rates and latencies."""
    print("| load | system | tokens/s (spread) | TTFT p50 / p90 / p99 ms | gap p50 / p90 / p99 ms | ms per token p50 |")
    print("|---|---|---|---|---|---|")
    for load, row in table.items():
        for system, cell in filled(row):
            rates = [result.summary.tokens_per_s for result in cell]
            print(
                f"| {load} | {system} | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) "
                f"| {three(cell, lambda summary: summary.ttft)} | {three(cell, lambda summary: summary.gap)} "
                f"| {ms(median(cell, lambda summary: summary.tpot.p50))} |"
            )
    print()


def print_outcomes(table: dict[str, dict[str, Cell]]) -> None:
    """Goodput and errors, summed over the rounds, and the load generator's own figures."""
    print(
        "| load | system | asked | complete | within the deadline | good/s | errors | client CPU | client late p99 ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for load, row in table.items():
        for system, cell in filled(row):
            summaries = [result.summary for result in cell]
            asked = sum(summary.asked for summary in summaries)
            errors = sum((Counter(summary.errors) for summary in summaries), Counter[str]())
            print(
                f"| {load} | {system} | {asked} | {sum(summary.complete for summary in summaries)} "
                f"| {sum(summary.within for summary in summaries) / max(1, asked):.1%} "
                f"| {median(cell, lambda summary: summary.goodput):.1f} "
                f"| {', '.join(f'{count} {kind}' for kind, count in errors.most_common()) or 'none'} "
                f"| {median(cell, lambda summary: summary.client_cpu):.0%} "
                f"| {ms(median(cell, lambda summary: summary.late_p99))} |"
            )
    print()


def print_usage(table: dict[str, dict[str, Cell]]) -> None:
    """What each system's processes took, in the median of rounds."""
    print("| load | system | CPU seconds by process | peak RSS MB by process |\n|---|---|---|---|")
    for load, row in table.items():
        for system, cell in filled(row):
            roles = cell[0].used
            cpu = {role: statistics.median(result.used[role].cpu_s for result in cell) for role in roles}
            rss = {role: statistics.median(result.used[role].peak_rss for result in cell) for role in roles}
            print(
                f"| {load} | {system} | {', '.join(f'{role} {seconds:.1f}' for role, seconds in cpu.items())} "
                f"| {', '.join(f'{role} {size / 1e6:.0f}' for role, size in rss.items())} |"
            )
    print()


def filled(row: dict[str, Cell]) -> list[tuple[str, Cell]]:
    """The systems that this load ran against."""
    return [(system, cell) for system, cell in row.items() if cell]


def three(cell: Cell, figure: Callable[[Summary], Quantiles]) -> str:
    """All three quantiles in ms."""
    return " / ".join(
        [
            ms(median(cell, lambda summary: figure(summary).p50)),
            ms(median(cell, lambda summary: figure(summary).p90)),
            ms(median(cell, lambda summary: figure(summary).p99)),
        ]
    )


def ms(seconds: float) -> str:
    """Milliseconds, with a decimal where they are few."""
    if math.isnan(seconds):
        return "-"
    if math.isinf(seconds):
        return "never"
    return f"{seconds * 1000:.0f}" if seconds >= 0.1 else f"{seconds * 1000:.1f}"


def draw(table: dict[str, dict[str, Cell]], folder: Path) -> list[Path]:
    """Throughput by clients, time to first token, and goodput."""
    if not table:
        return []
    loads, names = list(table), list(next(iter(table.values())))

    def of(name: str, figure: Callable[[Summary], float], chosen: Sequence[str]) -> list[float]:
        return [median(table[load][name], figure) for load in chosen]

    closed = [load for load in loads if load.endswith("at a time")]
    opened = [load for load in loads if load not in closed]
    rates = {
        name: [
            (float(load.split()[0]), rate)
            for load, rate in zip(closed, of(name, lambda each: each.tokens_per_s, closed), strict=True)
            if not math.isnan(rate)
        ]
        for name in names
    }
    first = {name: of(name, lambda each: each.ttft.p99, loads) for name in names}
    good = {name: [share * 100 for share in of(name, lambda each: each.good_share, opened)] for name in names}
    return [
        plots.save(folder, "throughput", plots.lines("Tokens per second", "tokens/s", "clients", rates)),
        plots.save(folder, "ttft", plots.bars("Time to first token, p99", "s", loads, first, log=True)),
        plots.save(folder, "goodput", plots.bars("Answered completely within the deadline", "%", opened, good)),
    ]
