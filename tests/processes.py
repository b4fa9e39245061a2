"""Starts real worker processes for tests, watches them, and ends them by pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
CELERY = ("celery", "-A", "workers.main", "worker")
FAKE_MODEL = '[[model]]\nname = "fake"\nengine = "fake"\nmax_num_seqs = {lanes}\n'


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(look: Callable[[], T], what: str, timeout_s: float = 20.0, every_s: float = 0.02) -> T:
    """The first true value of `look`; fails with `what` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(every_s)


def write_fake_model(folder: Path, lanes: int = 8) -> Path:
    """A models.toml that serves the scripted engine as `fake`."""
    path = folder / "models.toml"
    path.write_text(FAKE_MODEL.format(lanes=lanes))
    return path


class WorkerProcess:
    """A worker of this test; `log` is what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.process = process
        self.log_file = log_file

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All of its output so far."""
        return self.log_file.read_text(errors="replace")

    def wait_ready(self, timeout_s: float = 30.0) -> WorkerProcess:
        """Wait until it takes tickets."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
            return " ready." in self.log

        wait_until(ready, f"a ready worker, but it says:\n{self.log}", timeout_s)
        return self

    def signal(self, number: int) -> None:
        """Send a signal to this process only."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 15.0) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End it, hard if it does not go by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout_s)


def start_worker(
    folder: Path,
    redis_url: str,
    models_toml: Path,
    env: Mapping[str, str] | None = None,
    model: str = "fake",
    fault: str = "",
) -> WorkerProcess:
    """Start `celery -A workers.main worker`; its log goes to a new file in `folder`. The caller stops it.

    `fault`: one of `tests.faulty_worker`, planted in it.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    settings = {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_MODELS": str(models_toml),
        "PENSTOCK_MODEL": model,
        "PENSTOCK_DATA_DIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    number = len(list(folder.glob("worker-*.log")))
    log_file = folder / f"worker-{number}.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *(("tests.faulty_worker", fault) if fault else CELERY)],
            cwd=ROOT,
            env=inherited | settings | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return WorkerProcess(process, log_file)
