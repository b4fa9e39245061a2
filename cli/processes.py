"""The parts that `penstock up` runs: how one is started, watched, restarted with a growing pause, and ended.

Each part is a session of its own, so a Ctrl-C of the terminal reaches the supervisor alone, and it writes straight to its
log file, so nothing blocks or is lost when the supervisor stalls. Parts must be started from the main thread: the
kernel's parent-death signal follows the thread that forked. Knows nothing of what the parts are.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GUARD = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
KEPT_LOGS = 3
LARGEST_LOG = 50_000_000
SIGNALS = {one.value: one.name for one in signal.Signals}  # most of the real-time ones have no name
#: After a rotation that failed: each try copies the whole log.
ROTATION_PAUSE_S = 60.0


@dataclass(frozen=True)
class Part:
    """A program to keep running. `label` is for people, `name` is its log's; `death_signal` is what it gets from the kernel
    if the supervisor is killed."""

    name: str
    label: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    death_signal: signal.Signals = signal.SIGKILL
    pass_fds: tuple[int, ...] = ()
    umask: int = -1


@dataclass(frozen=True)
class Exit:
    """How a part ended, after how many seconds."""

    reason: str
    ran_s: float


class Backoff:
    """The pause before a restart: 0.5 s, doubling up to 30 s; a run of 60 s starts over."""

    FIRST_S, LONGEST_S, HEALTHY_S = 0.5, 30.0, 60.0

    def __init__(self) -> None:
        self._pause = 0.0

    def after(self, ran_s: float) -> float:
        """The pause after a run of so many seconds."""
        fresh = self._pause == 0.0 or ran_s >= self.HEALTHY_S
        self._pause = self.FIRST_S if fresh else min(self._pause * 2, self.LONGEST_S)
        return self._pause


class Watcher:
    """The process that ends all groups when this one dies."""

    def __init__(self) -> None:
        self._groups: dict[int, signal.Signals] = {}
        self._due = 0.0
        self._begin()

    def add(self, group: int, number: signal.Signals) -> None:
        """From now on `group` gets this signal when the supervisor dies."""
        self._groups[group] = number
        self._write(f"+{group} {int(number)}")

    def remove(self, group: int) -> None:
        """The group has ended."""
        self._groups.pop(group, None)
        self._write(f"-{group}")

    def renew(self) -> bool:
        """Replace the process if it was killed, at most once a second; True if it was."""
        if self._process.poll() is None or time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + 1.0
        self.close()
        self._begin()
        for group, number in self._groups.items():
            self._write(f"+{group} {int(number)}")
        return True

    def close(self) -> None:
        """End the watcher; groups that are still named are ended too."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def _begin(self) -> None:
        self._process = subprocess.Popen(
            [*GUARD, "watch"], stdin=subprocess.PIPE, text=True, start_new_session=True, cwd="/"
        )

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it was killed: the kernel's signal still ties the parts to us
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


class Process:
    """One part: at most one running process, and when to start the next."""

    def __init__(self, part: Part, folder: Path, logs: Path, watcher: Watcher) -> None:
        self.part = part
        self.log = logs / f"{part.name}.log"
        self._folder = folder
        self._watcher = watcher
        self._backoff = Backoff()
        self._popen: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._due = 0.0
        self._rotation_due = 0.0
        self._read = 0
        try:
            rotate(self.log)
        except OSError:  # it goes on in the old log; `start` tells whether there is no writing either
            with contextlib.suppress(OSError):
                self._read = self.log.stat().st_size

    @property
    def pid(self) -> int | None:
        """The running process, if there is one."""
        return self._popen.pid if self._popen else None

    def start(self) -> None:
        """Start it now; call from the main thread only. Raises OSError, and can be called again."""
        part = self.part
        leash = [*GUARD, "exec", str(int(part.death_signal)), str(os.getpid())]
        self.log.parent.mkdir(parents=True, exist_ok=True)  # someone may have moved the logs away
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*leash, *part.argv],
                env=dict(part.env),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=part.pass_fds,
                umask=part.umask,
            )
        self._watcher.add(self._popen.pid, part.death_signal)
        self._started = time.monotonic()

    def poll(self) -> Exit | None:
        """How it ended, once, if it did since the last call."""
        if self._popen is None or self._popen.poll() is None:
            return None
        code = self._popen.returncode
        reason = f"killed by {SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"exit code {code}"
        # what it left in its group (an API with several processes) must not live on beside the next one
        self._kill_group()
        self._watcher.remove(self._popen.pid)
        self._popen = None
        return Exit(reason, time.monotonic() - self._started)

    def pause(self, ran_s: float) -> float:
        """Plan the restart after a run of so many seconds; the pause until then."""
        pause = self._backoff.after(ran_s)
        self._due = time.monotonic() + pause
        return pause

    def restart_if_due(self) -> bool:
        """Start it again if its pause is over; raises what `start` does."""
        if self._popen is not None or time.monotonic() < self._due:
            return False
        self.start()
        return True

    def ask_to_end(self) -> None:
        """SIGTERM to the process, which ends its own children in its own order."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self._popen is not None:
            self._kill_group()

    def new_lines(self) -> list[str]:
        """What it wrote to its log since the last call, at most 64 KiB of it. Raises OSError if the log is gone."""
        try:
            with self.log.open("rb") as log:
                if os.fstat(log.fileno()).st_size < self._read:  # someone emptied it
                    self._read = 0
                log.seek(self._read)
                data = log.read(65536)
        except FileNotFoundError:
            self._read = 0  # the next start makes another
            raise
        whole = data.rfind(b"\n") + 1
        self._read += whole if whole or len(data) < 65536 else len(data)
        return data[:whole].decode("utf-8", "replace").splitlines()

    def rotate_if_large(self) -> bool:
        """Begin a new log if this one is large; True if so. Raises OSError if that fails: it is tried again later."""
        if self._read <= LARGEST_LOG or time.monotonic() < self._rotation_due:
            return False
        self._rotation_due = time.monotonic() + ROTATION_PAUSE_S
        rotate(self.log, running=True)
        self._read, self._rotation_due = 0, 0.0
        return True

    def _kill_group(self) -> None:
        assert self._popen is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)


def rotate(log: Path, running: bool = False) -> None:
    """Begin a new log; the last ones stay as .1, .2 and .3.

    A `running` part keeps its file open, so that is copied and emptied; a line written in between is lost. The copy comes
    first: if it fails (a full disk), it goes, and every log stays as it is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    draft = log.with_name(f"{log.name}.new")
    if running:
        try:
            shutil.copy(log, draft)  # with its mode
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    for number in range(KEPT_LOGS, 1, -1):
        older = log.with_name(f"{log.name}.{number - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number}"))
    last = log.with_name(f"{log.name}.1")
    if running:
        draft.replace(last)
        os.truncate(log, 0)
    elif log.exists():
        log.replace(last)
    log.touch(mode=0o600)
