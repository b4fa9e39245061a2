"""What the machine can do to one part (its log, its start, its watcher) must not end the others."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cli.processes import Part
from cli.supervisor import Supervisor

#: Says a warning for every new file in its folder of orders.
PARROT = """
import pathlib, sys, time
seen = set()
while True:
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        if path.name not in seen:
            seen.add(path.name)
            print("WARNING", path.name, flush=True)
    time.sleep(0.01)
"""


class House:
    """A supervisor, what it said, and parts that say what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.supervisor = Supervisor(folder, self.said.append)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str) -> None:
        (self.folder / name).mkdir()
        argv = (sys.executable, "-I", "-S", "-c", PARROT, str(self.folder / name))
        self.supervisor.start(Part(name, f"the {name}", argv, dict(os.environ)))

    def pid(self, name: str) -> int | None:
        return next(process.pid for process in self.supervisor._parts if process.part.name == name)

    def order(self, name: str, word: str) -> None:
        (self.folder / name / word).touch()

    def count(self, text: str) -> int:
        return sum(text in line for line in self.said)

    def until(self, done: Callable[[], Any], seconds: float = 10.0) -> None:
        """Tend the parts until `done`."""
        deadline = time.monotonic() + seconds
        assert self.supervisor.until(lambda: done() or time.monotonic() > deadline, 0.01)
        assert done(), self.said

    def tends(self, name: str, word: str) -> None:
        """What this part writes is shown."""
        self.order(name, word)
        self.until(lambda: f"{name} | WARNING {word}" in self.said)

    def kill(self, name: str) -> None:
        pid = self.pid(name)
        assert pid
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr("cli.processes.Backoff.FIRST_S", 0.05)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    house = House(tmp_path)
    try:
        with house.supervisor:
            yield house
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Starts:
    """Popen, which fails for `name` as often as `failures` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures: dict[str, int] = {}
        self._popen = subprocess.Popen
        monkeypatch.setattr("cli.processes.subprocess.Popen", self)

    def __call__(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        name = Path(argv[-1]).name
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return self._popen(argv, **options)


def test_a_deleted_log_is_said_once_and_made_again_at_the_next_start(house: House) -> None:
    house.start("one")
    house.start("two")
    house.tends("one", "before")
    house.log("one").unlink()
    house.tends("two", "meanwhile")
    house.tends("two", "later")
    assert house.count("the one: its log cannot be read (No such file or directory: ") == 1
    assert house.count("cannot be read") == 1
    house.kill("one")
    house.tends("one", "after")
    assert house.log("one").stat().st_mode & 0o777 == 0o600
    house.log("one").unlink()
    house.until(lambda: house.count("the one: its log cannot be read") == 2)


def test_the_folder_of_logs_may_go(house: House) -> None:
    house.start("one")
    house.start("two")
    shutil.rmtree(house.folder / "logs")
    house.until(lambda: house.count("cannot be read") == 2)
    house.kill("one")
    house.tends("one", "after")
    assert house.pid("two")


def test_a_log_that_someone_emptied_is_read_from_its_beginning(house: House) -> None:
    house.start("one")
    house.tends("one", "a_long_word_that_is_longer")
    os.truncate(house.log("one"), 0)
    house.tends("one", "word")


def test_a_rotation_that_fails_leaves_the_log_and_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.processes.LARGEST_LOG", 40)
    monkeypatch.setattr("cli.processes.ROTATION_PAUSE_S", 0.2)
    full = True
    tries: list[float] = []
    copy = shutil.copy

    def partial(source: Path, target: Path) -> Any:
        tries.append(time.monotonic())
        if not full:
            return copy(source, target)
        target.write_text("part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cli.processes.shutil.copy", partial)
    house.start("one")
    house.start("two")
    house.log("one").with_name("one.log.1").write_text("an older one")
    house.tends("one", "a" * 50)
    house.tends("one", "b")
    house.until(lambda: len(tries) >= 3)
    house.tends("two", "meanwhile")
    assert min(later - earlier for earlier, later in pairwise(tries)) >= 0.2
    assert house.log("one").read_text() == f"WARNING {'a' * 50}\nWARNING b\n"
    assert sorted(path.name for path in house.log("one").parent.iterdir()) == ["one.log", "one.log.1", "two.log"]
    assert house.log("one").with_name("one.log.1").read_text() == "an older one"
    assert house.count("the one: its log cannot be rotated (No space left on device") == 1
    full = False
    house.until(lambda: house.log("one").stat().st_size == 0)
    assert house.log("one").with_name("one.log.1").read_text() == f"WARNING {'a' * 50}\nWARNING b\n"
    assert house.log("one").with_name("one.log.2").read_text() == "an older one"
    house.tends("one", "c")


def test_a_restart_that_fails_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    house.start("one")
    house.start("two")
    starts.failures["one"] = 3
    house.kill("one")
    house.tends("two", "meanwhile")
    house.tends("one", "after")
    assert starts.failures["one"] == 0
    assert house.count("the one cannot start (Resource temporarily unavailable") == 1
    assert house.count("the one starts again") == 1
    assert house.supervisor.deaths == {"one": 4}


def test_a_first_start_that_fails_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    starts.failures["one"] = 1
    house.start("one")
    house.start("two")
    house.tends("two", "meanwhile")
    house.tends("one", "after")
    assert house.count("the one cannot start") == 1


def test_an_old_log_that_cannot_be_moved_is_continued(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(log: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cli.processes.rotate", refuse)
    house.log("one").parent.mkdir()
    house.log("one").write_text("WARNING of an earlier run\n")
    house.start("one")
    house.tends("one", "now")
    assert house.log("one").read_text() == "WARNING of an earlier run\nWARNING now\n"
    assert house.said == ["one | WARNING now"]


def test_a_watcher_that_was_killed_is_replaced(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    house.start("one")
    watcher = house.supervisor._watcher
    first = watcher._process.pid
    starts.failures["watch"] = 1
    os.kill(first, signal.SIGKILL)
    house.until(lambda: house.count("cannot be replaced (Resource temporarily unavailable"))
    house.kill("one")  # meanwhile groups end and begin
    house.tends("one", "after")
    house.until(lambda: watcher._process.pid != first)
    assert house.count("The watcher was killed; another one has its place") == 1
    pid = house.pid("one")
    assert pid
    watcher.close()  # the new one ends the groups that it was told of
    house.until(lambda: house.pid("one") != pid)
    assert house.count("the one died (killed by SIGKILL)") == 2
