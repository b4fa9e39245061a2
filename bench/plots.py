"""Small SVG charts without a plotting library: lines and grouped bars, on a linear or a logarithmic axis.

The ground is transparent, and every colour has contrast enough on white and on near-black: pages embed a picture as it
is, whichever theme the reader has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

#: Okabe and Ito's, which colour-blind readers tell apart, those of middling brightness.
COLOURS = ("#0a84c6", "#d9822b", "#1a9e77", "#c4679f", "#8a7bc8", "#a08a1f")
INK = "#808080"
WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 44
FONT = "font-family='system-ui, sans-serif' font-size='12'"


@dataclass(frozen=True)
class Axis:
    """The upright axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    @property
    def ticks(self) -> list[float]:
        """Round values; on a logarithmic axis the powers of ten."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1)]
        step = self.high / 5
        return [step * number for number in range(6)]

    def y(self, value: float) -> float:
        """Where a value stands; what is beyond an end stands at it."""
        value = min(max(value, self.low), self.high)
        share = (value - self.low) / (self.high - self.low)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def axis_of(values: Sequence[float], log: bool) -> Axis:
    """Round ends around all finite values."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if log:
        low = 10.0 ** math.floor(math.log10(min(finite, default=1)))
        high = 10.0 ** math.ceil(math.log10(max(finite, default=10)))
        return Axis(low, max(high, low * 10), True)
    most = max(finite, default=0.0) or 1.0
    step = 10.0 ** math.floor(math.log10(most / 5))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step * 5 >= most * 0.9999)
    return Axis(0.0, step * 5)


def bars(title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], log: bool = False) -> str:
    """One group of bars for each of `groups`. An infinite value reaches the top and is marked, NaN leaves a gap."""
    axis = axis_of([value for values in series.values() for value in values], log)
    group_width = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    width = group_width * 0.8 / max(1, len(series))
    parts = _frame(title, unit, axis, list(series))
    for at, group in enumerate(groups):
        left = LEFT + group_width * (at + 0.1)
        parts.append(_text(left + group_width * 0.4, HEIGHT - BOTTOM + 18, group, "middle"))
        for number, values in enumerate(series.values()):
            parts += _bar(left + number * width, width, axis, values[at], COLOURS[number % len(COLOURS)])
    return _svg(title, parts)


def lines(title: str, unit: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Points joined by lines; x is linear from 0."""
    points = [point for each in series.values() for point in each]
    axis = axis_of([y for _, y in points], log=False)
    most = max((x for x, _ in points), default=1.0) or 1.0

    def at(x: float) -> float:
        return LEFT + x / most * (WIDTH - LEFT - RIGHT - 12)

    parts = _frame(title, unit, axis, list(series))
    for x in sorted({x for x, _ in points}) if len({x for x, _ in points}) <= 10 else axis_of([most], False).ticks:
        if x <= most:
            parts.append(_text(at(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, x_label, "end"))
    for number, each in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{at(x):.1f},{axis.y(y):.1f}" for x, y in each)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if len(each) <= 20:
            parts += [f"<circle cx='{at(x):.1f}' cy='{axis.y(y):.1f}' r='3' fill='{colour}'/>" for x, y in each]
    return _svg(title, parts)


def save(folder: Path, name: str, svg: str) -> Path:
    """Write `name`.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    path.write_text(svg, encoding="utf-8")
    return path


def _bar(left: float, width: float, axis: Axis, value: float, colour: str) -> list[str]:
    if math.isnan(value):
        return []
    top = axis.y(value)
    tall = HEIGHT - BOTTOM - top
    parts = [f"<rect x='{left:.1f}' y='{top:.1f}' width='{width * 0.92:.1f}' height='{tall:.1f}' fill='{colour}'/>"]
    label = "never" if math.isinf(value) else _number(value)
    return [*parts, _text(left + width * 0.46, top - 3, label, "middle", size=9)]


def _frame(title: str, unit: str, axis: Axis, names: Sequence[str]) -> list[str]:
    """Title, legend, and the lines of the axis with their values."""
    parts = [f"<text x='{LEFT}' y='18' fill='{INK}' {FONT} font-weight='600'>{escape(title)}</text>"]
    parts.append(_text(LEFT - 8, TOP - 12, unit, "end"))
    left = float(LEFT)
    for number, name in enumerate(names):
        parts.append(f"<rect x='{left:.0f}' y='27' width='10' height='10' fill='{COLOURS[number % len(COLOURS)]}'/>")
        parts.append(_text(left + 14, 36, name))
        left += 30 + 7 * len(name)
    for value in axis.ticks:
        y = axis.y(value)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='{INK}' stroke-opacity='.3'/>")
        parts.append(_text(LEFT - 8, y + 4, _number(value), "end"))
    return parts


def _number(value: float) -> str:
    """Short: 12k, 350, 4.2, 0.013."""
    if value >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    font = FONT if size == 12 else FONT.replace("'12'", f"'{size}'")
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{INK}' text-anchor='{anchor}' {font}>{escape(text)}</text>"


def _svg(title: str, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>"
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>\n"])
