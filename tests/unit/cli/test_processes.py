"""One part: its log, its restarts, its end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.lock import DirLock
from cli.processes import Backoff, Exit, Part, Process, Watcher, rotate
from tasks.errors import BadConfig


def until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


def process(tmp_path: Path, watcher: Watcher, code: str) -> Process:
    part = Part("part", "the part", (sys.executable, "-c", code), dict(os.environ))
    return Process(part, tmp_path, tmp_path / "logs", watcher)


def ended(process: Process) -> Exit:
    """How it ended; waits for that."""
    ends: list[Exit] = []

    def done() -> bool:
        end = process.poll()
        ends.extend([end] if end else [])
        return bool(ends)

    until(done)
    return ends[0]


def test_backoff_doubles_and_starts_over() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(61) == 0.5
    assert backoff.after(59) == 1


def test_logs_rotate(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "part.log"
    for number in range(5):
        rotate(log)
        log.write_text(str(number))
    rotate(log)
    assert log.read_text() == ""
    assert log.stat().st_mode & 0o777 == 0o600
    assert [log.with_name(f"part.log.{n}").read_text() for n in (1, 2, 3)] == ["4", "3", "2"]
    assert not log.with_name("part.log.4").exists()


def test_a_log_that_grows_too_large_is_rotated_while_its_part_writes(
    tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.processes.LARGEST_LOG", 20)
    go = tmp_path / "go"
    code = (
        "import pathlib, time; print('a' * 30, flush=True);"
        f"[time.sleep(0.01) for _ in iter(pathlib.Path({str(go)!r}).exists, True)]; print('b', flush=True)"
    )
    part = process(tmp_path, watcher, code)
    part.start()
    until(lambda: part.log.stat().st_size == 31)
    assert part.new_lines() == ["a" * 30]
    assert part.rotate_if_large()
    assert part.log.with_name("part.log.1").read_text() == "a" * 30 + "\n"
    go.touch()
    ended(part)
    assert part.new_lines() == ["b"]
    assert part.log.read_text() == "b\n"


def test_output_goes_to_the_log_and_the_reason_is_told(tmp_path: Path, watcher: Watcher) -> None:
    part = process(tmp_path, watcher, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    part.start()
    assert ended(part).reason == "exit code 7"
    assert sorted(part.new_lines()) == ["err", "out"]
    assert part.new_lines() == []
    assert part.pid is None


def test_a_killed_part_takes_its_own_children_along(tmp_path: Path, watcher: Watcher) -> None:
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    part = process(tmp_path, watcher, code)
    part.start()
    until(lambda: part.log.read_text().endswith("\n"))
    child = int(part.log.read_text())
    assert part.pid is not None
    os.kill(part.pid, signal.SIGKILL)
    assert ended(part).reason == "killed by SIGKILL"
    until(lambda: not alive(child), 2)


def test_it_starts_again_when_its_pause_is_over(tmp_path: Path, watcher: Watcher) -> None:
    part = process(tmp_path, watcher, "pass")
    part.start()
    assert part.pause(ended(part).ran_s) == 0.5
    assert not part.restart_if_due()
    until(part.restart_if_due)
    assert ended(part).reason == "exit code 0"


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    lock = DirLock(tmp_path / "lock")
    with pytest.raises(BadConfig, match=rf"pid {os.getpid()}\) uses .*PENSTOCK_DATA_DIR"):
        DirLock(tmp_path / "lock")
    lock.close()
    DirLock(tmp_path / "lock").close()
