"""The charts are well-formed, and what they show is where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from bench.plots import HEIGHT, WIDTH, Axis, axis_of, bars, lines

SVG = "{http://www.w3.org/2000/svg}"


def rectangles(svg: str) -> list[dict[str, str]]:
    """The bars, without the squares of the legend."""
    return [each.attrib for each in ElementTree.fromstring(svg).iter(f"{SVG}rect") if each.get("width") != "10"]


@pytest.mark.parametrize(("most", "high"), [(1, 1), (7, 10), (101, 125), (2400, 2500), (0.3, 0.5), (0, 1)])
def test_a_linear_axis_ends_at_a_round_value(most: float, high: float) -> None:
    assert axis_of([most], log=False).high == pytest.approx(high)


def test_a_logarithmic_axis_spans_whole_decades() -> None:
    axis = axis_of([0.02, 3.0, math.inf, math.nan], log=True)
    assert (axis.low, axis.high) == pytest.approx((0.01, 10.0))
    assert axis.ticks == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert axis.y(1.0) - axis.y(10.0) == pytest.approx(axis.y(0.1) - axis.y(1.0))


def test_more_is_higher_and_the_ends_hold() -> None:
    axis = Axis(0.0, 10.0)
    assert axis.y(10.0) < axis.y(1.0) < axis.y(0.0)
    assert axis.y(math.inf) == axis.y(10.0)


def test_bars_show_every_value_and_leave_gaps() -> None:
    svg = bars("A & B", "s", ["one", "two"], {"x<y": [1.0, math.nan], "z": [2.0, math.inf]})
    shown = rectangles(svg)
    assert len(shown) == 3
    assert float(shown[0]["height"]) * 2 == pytest.approx(float(shown[1]["height"]), abs=0.2)
    assert "never" in svg
    assert "A &amp; B" in svg
    for each in shown:
        assert 0 <= float(each["x"]) <= WIDTH
        assert 0 <= float(each["y"]) <= HEIGHT


def test_lines_join_the_points_of_each_series() -> None:
    root = ElementTree.fromstring(lines("t", "tokens/s", "clients", {"a": [(1, 10), (64, 20)], "b": [(1, 5), (64, 5)]}))
    paths = [each.attrib["points"].split() for each in root.iter(f"{SVG}polyline")]
    assert [len(path) for path in paths] == [2, 2]
    assert len({each.split(",")[1] for each in paths[1]}) == 1


def test_nothing_measured_is_still_a_picture() -> None:
    for svg in (bars("t", "s", [], {}), bars("t", "s", ["a"], {"x": [math.nan]}, log=True), lines("t", "s", "x", {})):
        ElementTree.fromstring(svg)
