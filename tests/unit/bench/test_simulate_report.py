"""Figures, arrivals, the fit and the picture of the model."""

from __future__ import annotations

import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.simulate_engine import StepCost
from bench.simulate_fit import Step, fit
from bench.simulate_line import simulated_source
from bench.simulate_load import BANDS, TENANTS, Lengths, Mix, burst, poisson
from bench.simulate_plot import lines
from bench.simulate_report import jain, percentile, seconds_text
from tasks import lua


def test_percentiles_are_values_that_occur() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5.0], 99.9) == 5.0
    assert math.isnan(percentile([], 50))


def test_jains_index() -> None:
    assert jain([2.0, 2.0, 2.0, 2.0]) == 1.0
    assert jain([8.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 1.0


@pytest.mark.parametrize(("value", "text"), [(0.0451, "0.045"), (3.21, "3.2"), (180.4, "180"), (math.inf, "never")])
def test_seconds(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_the_same_seed_draws_the_same_load() -> None:
    draws = [Mix().at(poisson(random.Random(4), 50.0, 10.0), random.Random(5)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert 350 < len(draws[0]) < 650
    assert {arrival.tenant for arrival in draws[0]} <= set(TENANTS)
    assert {arrival.priority for arrival in draws[0]} == set(BANDS)


def test_bursts_are_in_order_and_complete() -> None:
    times = list(burst(random.Random(1), 100, 2.0, start=5.0))
    assert times == sorted(times)
    assert len(times) == 100
    assert 5.0 <= times[0] <= times[-1] < 7.0


def test_lengths_are_cut() -> None:
    rng, lengths = random.Random(2), Lengths(spread=3.0, most=500)
    drawn = [lengths.draw(rng) for _ in range(500)]
    assert all(1 <= part <= 500 for pair in drawn for part in pair)


def test_the_fit_finds_the_constants() -> None:
    true = StepCost(0.004, 0.0002, 0.0001, 0.003)
    shapes = [(n, p, k) for n in (0, 1, 8, 32) for p in (0, 16, 400) for k in (0, 500, 9000) if n or p]
    found = fit([Step(n, p, k, true.run(1, n, k, p)) for n, p, k in shapes])
    assert found.cost.fixed == pytest.approx(true.fixed)
    assert found.cost.context == pytest.approx(true.context)
    assert found.p90 == pytest.approx(0.0, abs=1e-6)


def test_the_fit_leaves_out_what_would_be_negative() -> None:
    found = fit([Step(n, 0, 10.0 * n, 0.010 - 0.0001 * n) for n in range(1, 40)])
    assert min(found.cost.fixed, found.cost.sequence, found.cost.prompt, found.cost.context) >= 0


@pytest.mark.parametrize("name", lua.NAMES)
def test_only_the_clock_of_a_script_is_changed(name: str) -> None:
    real, simulated = lua.source(name).splitlines(), simulated_source(name).splitlines()
    assert [line for line in real if line not in simulated] == [
        "  local t = redis.call('TIME')",
        "  return t[1] * 1000 + math.floor(t[2] / 1000)",
    ]


def test_the_picture_is_svg(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "load.svg"
    lines(path, "a < b", ["50%", "80%"], {"p50": [0.1, 2.0], "p99": [math.nan, 30.0]})
    tree = ET.parse(path)
    assert len([each for each in tree.iter() if each.tag.endswith("circle")]) == 3
