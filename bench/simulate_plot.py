"""Lines on a logarithmic axis as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

COLOURS = ("#0a84c6", "#d9822b", "#1a9e77", "#c4679f", "#8a7bc8", "#a08a1f")
INK = "#808080"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 64, 150, 36, 40


def lines(path: Path, title: str, ticks: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """One line for each of the series, seconds over the ticks; what is not finite or not positive is left out."""
    known = [value for values in series.values() for value in values if math.isfinite(value) and value > 0]
    low, high = math.floor(math.log10(min(known, default=1))), math.ceil(math.log10(max(known, default=10)))
    high = max(high, low + 1)

    def x(at: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / max(1, len(ticks) - 1)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(value) - low) / (high - low)

    parts = [_text(LEFT, 20, title)]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f"<path d='M{LEFT} {at:.1f}H{WIDTH - RIGHT}' stroke='{INK}' stroke-width='.4'/>")
        parts.append(_text(LEFT - 6, at + 4, f"{10.0**power:g} s", anchor="end"))
    parts += [_text(x(at), HEIGHT - BOTTOM + 18, tick, anchor="middle") for at, tick in enumerate(ticks)]
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x(at), y(value)) for at, value in enumerate(values) if math.isfinite(value) and value > 0]
        path_text = "L".join(f"{left:.1f} {top:.1f}" for left, top in points)
        if points:
            parts.append(f"<path d='M{path_text}' fill='none' stroke='{colour}' stroke-width='2'/>")
            parts += [f"<circle cx='{left:.1f}' cy='{top:.1f}' r='3' fill='{colour}'/>" for left, top in points]
        parts.append(_text(WIDTH - RIGHT + 12, TOP + 16 + 18 * number, name, colour))
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}'>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _text(x: float, y: float, text: str, colour: str = INK, anchor: str = "start") -> str:
    style = f"font-family='system-ui, sans-serif' font-size='12' fill='{colour}' text-anchor='{anchor}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"
