"""Keeps the parts of one machine running: starts them in order, restarts what dies, drains when asked to stop.

One thread, one loop; signals only raise a count that the loop reads. The first asks for a drain: the API stops accepting,
workers hand their jobs back, Redis ends last, so that its file holds all of it. The second kills. A SIGKILL of this
process ends the parts through `cli.guard`. It knows nothing of settings or models: `cli.plan` made the parts.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

from cli.processes import Part, Process, Watcher

TICK_S = 0.1
#: How long the parts have to drain, together, and Redis after them.
DRAIN_S, REDIS_S = 7.0, 3.0
#: Lines of a part's log that people should see at once; at most so many per look.
IMPORTANT = re.compile(r"(\S+ \S+ )?(WARNING|ERROR|CRITICAL)\b")
SHOWN = 5

Say = Callable[[str], None]
T = TypeVar("T")


class Supervisor:
    """The running parts. Use as a context manager: leaving it ends them all."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._say = say
        self._watcher = Watcher()
        self._store: Process | None = None
        self._parts: list[Process] = []
        self._signals = 0
        self._failing: set[tuple[str, str]] = set()
        self.deaths: dict[str, int] = {}

    def __enter__(self) -> Supervisor:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._drain()
        finally:
            for process in self._all():
                process.kill()
            self._watcher.close()

    @property
    def stopping(self) -> bool:
        """Someone asked to stop."""
        return self._signals > 0

    def start_store(self, part: Part) -> None:
        """Start Redis, which is restarted like the rest but ends last."""
        self._store = self._start(part)

    def start(self, part: Part) -> None:
        """Start a part and keep it running."""
        self._parts.append(self._start(part))

    def until(self, done: Callable[[], bool], pause_s: float = TICK_S) -> bool:
        """Keep everything running until `done`; False if someone asked to stop first."""
        while not self.stopping:
            if done():
                return True
            self._tick()
            time.sleep(pause_s)
        return False

    def run(self) -> None:
        """Keep everything running until someone asks to stop."""
        self.until(lambda: False)

    def _start(self, part: Part) -> Process:
        process = Process(part, self._folder, self._logs, self._watcher)
        self._begin(process)
        return process

    def _begin(self, process: Process) -> bool:
        """Start it if it is due; a start that fails counts as a death. True if it runs anew."""
        name = process.part.name
        began = self._attempt(name, f"{process.part.label} cannot start", process.restart_if_due)
        if began is None:
            self.deaths[name] = self.deaths.get(name, 0) + 1
            process.pause(0.0)
        return bool(began)

    def _attempt(self, name: str, failure: str, do: Callable[[], T]) -> T | None:
        """What `do` returns, which is False if it had nothing to do; None after an OSError: what a disk or a machine that is
        full does to one part must not end the others. It is said once until `do` works again."""
        try:
            done = do()
        except OSError as error:
            if (name, failure) not in self._failing:
                self._failing.add((name, failure))
                where = f": {error.filename}" if error.filename else ""
                self._say(f"{failure} ({error.strerror or error}{where}). It is tried again; the rest goes on.")
            return None
        if done is not False:
            self._failing.discard((name, failure))
        return done

    def _all(self) -> Iterator[Process]:
        if self._store:
            yield self._store
        yield from self._parts

    def _tick(self) -> None:
        if self._attempt("", "The watcher was killed and cannot be replaced", self._watcher.renew):
            self._say("The watcher was killed; another one has its place")
        for process in self._all():
            self._tend(process)

    def _tend(self, process: Process) -> None:
        name, label = process.part.name, process.part.label
        ended = process.poll()
        lines = self._attempt(name, f"{label}: its log cannot be read", process.new_lines) or []
        self._show(process.part, lines)
        self._attempt(name, f"{label}: its log cannot be rotated", process.rotate_if_large)
        if ended:
            self.deaths[name] = self.deaths.get(name, 0) + 1
            pause = process.pause(ended.ran_s)
            last = f" Its last line: {lines[-1].strip()[:200]}" if lines else ""
            self._say(f"{label} died ({ended.reason}) and starts again in {pause:g} s; its log: {process.log}.{last}")
        elif self._begin(process):
            self._say(f"{label} starts again (pid {process.pid})")

    def _show(self, part: Part, lines: list[str]) -> None:
        important = [line for line in lines if IMPORTANT.match(line)]
        for line in important[:SHOWN]:
            self._say(f"{part.name} | {line.strip()[:300]}")
        if len(important) > SHOWN:
            self._say(f"{part.name} | … and {len(important) - SHOWN} more such lines in its log")

    def _drain(self) -> None:
        """Ask the parts to end, then Redis; kill what is late, or all of it at the second signal."""
        asked = self._signals
        for process in self._parts:  # the API first: it stands before the workers
            process.ask_to_end()
        self._wait(self._parts, DRAIN_S, asked)
        for process in self._parts:
            if process.pid:
                hurried = self._signals > max(asked, 1)
                self._say(f"{process.part.label} {'is killed' if hurried else 'did not end in time and is killed'}")
                process.kill()
        self._wait(self._parts, 1.0, asked)
        if self._store:
            self._store.ask_to_end()
            self._wait([self._store], REDIS_S, self._signals)

    def _wait(self, processes: list[Process], seconds: float, asked: int) -> None:
        """Wait until they have ended, but not longer than this, nor past another signal."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._signals <= max(asked, 1):
            for process in processes:
                process.poll()
            if not any(process.pid for process in processes):
                return
            time.sleep(0.02)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1


def quietly(say: Say) -> Say:
    """A `say` that a terminal which went away cannot break."""

    def _say(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            say(text)

    return _say
