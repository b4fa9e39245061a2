"""The burst scene against a real pool of the scripted engine: every request has its fate, and none is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def test_a_small_burst_is_answered_or_refused_to_the_last_request(tmp_path: Path) -> None:
    shape = "--count 60 --within 0.2 --seconds 6 --tokens 8 --step-ms 20 --workers 1 --lanes 4 --max-waiting 20"
    done = subprocess.run(
        [sys.executable, "-m", "bench.burst", *shape.split(), "--seed", "1", "--plots", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    row = re.search(r"^\| burst \| (60 .*?) \| [^|]*\|$", done.stdout, re.MULTILINE)
    assert row, done.stdout
    asked, complete, refused, silent, broken, given_up, lost = (int(cell) for cell in row[1].split(" | "))
    assert complete + refused == asked
    assert complete >= 24  # what the lanes and the line hold
    assert (silent, broken, given_up, lost) == (0, 0, 0, 0)
    ElementTree.parse(tmp_path / "burst-penstock.svg")
