"""`penstock bench engine`, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("penstock")), *arguments]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # or a name that is no folder is looked for on the hub, for long
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=offline)


def test_it_prints_a_row_for_each_number_of_streams() -> None:
    done = penstock(
        "bench", "engine", "x", "--engine", "fake", "--streams", "1", "--streams", "4", "--new", "5", "--rounds", "2"
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "4"]
    rates = [float(row[1]) for row in rows]
    assert rates[0] > 10  # five tokens of 5 ms each
    assert rates[1] > 2 * rates[0]  # four at once


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere", "--device", "cpu"], "nowhere"),
        (["x", "--engine", "warp"], "warp"),
        (["x", "--engine", "fake", "--streams", "0"], "streams"),
        (["x", "--engine", "fake", "--new", "0"], "new"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: list[str], word: str) -> None:
    done = penstock("bench", "engine", *arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
