"""The commands that measure what the pool costs, as a reader of docs/benchmarks.md runs them, but for moments only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(200)  # each starts a pool or two


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of them, to its end."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, f"bench/{command}.py", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=180,
    )


def measure(command: str, *arguments: str) -> list[list[str]]:
    """The cells of every row of what it prints."""
    done = run(command, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows_of(done.stdout)


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of its tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def number(cell: str) -> float:
    """The median in a cell."""
    return float(cell.split()[0])


def test_overhead_has_the_pool_beside_its_engine_and_every_stage_of_the_first_token() -> None:
    options = ["--models", "fake", "--idle-models", "fake", "--streams", "4", "--tokens", "16", "--seconds", "2"]
    rows = measure("overhead", *options, "--rounds", "1", "--requests", "5")
    rates = {row[1]: number(row[2]) for row in rows if row[0] == "fake"}
    assert rates.keys() == {"engine alone", "pool", "pool / engine"}
    assert all(rate > 0 for rate in rates.values())
    stages = [row for row in rows if row[0].startswith("of it: ")]
    assert len(stages) == 6
    assert all(float(row[1]) >= 0 for row in stages)  # each call of the protocol was seen


def test_scaling_counts_at_the_log() -> None:
    rows = measure(
        "scaling", "--workers", "1", "2", "--windows", "1", "--seconds", "2", "--settle", "0", "--step-ms", "100"
    )
    rates = [number(row[1]) for row in rows[2:]]
    assert len(rates) == 3  # one, two, and one again
    assert 0 < rates[0] <= 90  # eight lanes at ten steps a second
    assert rates[1] > rates[0]


def test_redis_limit_saturates_and_paces() -> None:
    options = ["--generators", "1", "--jobs", "4", "--channels", "1", "--workers", "1"]
    rows = measure("redis_limit", *options, "--seconds", "0.5", "--rounds", "1")
    saturated, paced = rows[2:6], rows[-1]
    assert all(number(row[4]) > 100 for row in saturated)
    assert number(paced[2]) <= float(paced[1]) * 1.1


def test_soak_reads_every_answer() -> None:
    done = run("soak", "--model", "fake", "--minutes", "0.15", "--every", "1", "--capacity-s", "2", "--lanes", "4")
    assert "nothing lost, doubled or failed" in done.stdout, done.stdout + done.stderr  # growth needs longer to be told
    parts = {row[0].partition(",")[0] for row in rows_of(done.stdout)[2:]}
    assert {"supervisor", "API", "worker", "Redis", "Redis' data"} <= parts
