"""What processes use is seen, their children's part too."""

from __future__ import annotations

import subprocess
import sys

from bench.usage import Usage

BUSY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(50_000_000); print(flush=True); input(); sum(range(3_000_000)); print(flush=True); input()"])
child.wait()
"""


def test_a_parts_children_count() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with Usage({"worker": process.pid, "gone": 2**22 + 1}) as usage:
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.close()
    assert list(usage.used) == ["worker"]
    assert usage.used["worker"].cpu_s > 0.01
    assert usage.used["worker"].peak_rss > 50_000_000
