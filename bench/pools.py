"""Starts and stops what is measured: Penstock here, and the servers of `bench/peers.py`.

Each system runs on loopback with logs in a temporary folder, one thread for the model, and nothing else changed from
its defaults but what makes the model the same. A system whose environment is missing says so in `missing`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench import toy_model
from bench.servers import free_port
from tasks.redis_server import find_server

ROOT = Path(__file__).parent.parent
#: The slowest, vLLM, imports for half a minute.
START_S = 240.0
MODELS = '[[model]]\nname = "{name}"\n{source}\nmax_num_seqs = {lanes}\nmax_waiting = {max_waiting}\n'
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD")


@dataclass(frozen=True)
class Part:
    """One process of a system. With `listens` the next one starts when something answers at that port."""

    role: str
    command: list[str]
    listens: int = 0
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A way to serve: its processes, once folder and port are known, and why it cannot run here, if it cannot."""

    name: str
    parts: Callable[[Path, int], list[Part]]
    model: str = toy_model.NAME
    missing: str = ""


@dataclass(frozen=True)
class Running:
    """A system that answers. `roles`: the process of each part."""

    port: int
    model: str
    roles: dict[str, int]


@dataclass(frozen=True)
class Pool:
    """Penstock's shape: lanes of each worker, workers, the longest line, the scripted engine or the random model."""

    lanes: int = 64
    workers: int = 1
    max_waiting: int = 1000
    fake: bool = False
    api_processes: int = 1


def penstock(pool: Pool, path: Path) -> System:
    """Redis, the API and the workers, as `penstock up` runs them. `path`: the model's folder."""
    name = "fake" if pool.fake else toy_model.NAME
    source = 'engine = "fake"' if pool.fake else f'path = "{path}"\ndtype = "float32"'

    def parts(folder: Path, port: int) -> list[Part]:
        entry = MODELS.format(name=name, source=source, lanes=pool.lanes, max_waiting=pool.max_waiting)
        (folder / "models.toml").write_text(entry)
        redis_port = free_port()
        env = {
            "PENSTOCK_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "PENSTOCK_MODELS": str(folder / "models.toml"),
            "PENSTOCK_MODEL": name,
            "PENSTOCK_DATA_DIR": str(folder),
            "PENSTOCK_PORT": str(port),
            "PENSTOCK_API_PROCESSES": str(pool.api_processes),
            "PENSTOCK_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        redis = [find_server(), "--port", str(redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        worker = [sys.executable, "-m", "celery", "-A", "workers.main", "worker"]
        return [
            Part("redis", [*redis, "--appendonly", "yes", "--appendfsync", "everysec"], redis_port),
            Part("api", [sys.executable, "-m", "api"], port, env),
            *(Part(f"worker {number}" if number else "worker", worker, 0, env) for number in range(pool.workers)),
        ]

    return System("penstock", parts, name)


@contextmanager
def running(system: System, folder: Path) -> Iterator[Running]:
    """Start a system in a folder of its own, wait until it answers a chat, and end it afterwards."""
    folder.mkdir(parents=True)
    port = free_port()
    started: list[tuple[Part, subprocess.Popen[bytes]]] = []
    try:
        for part in system.parts(folder, port):
            process = _start(part, folder)
            started.append((part, process))
            if part.listens:
                _wait(partial(_listens, part.listens), process, part, folder)
        part, process = started[-1]
        _wait(partial(_answers, port, system.model), process, part, folder)
        yield Running(port, system.model, {part.role: process.pid for part, process in started})
    finally:
        for _, process in reversed(started):
            _end(process)


def _start(part: Part, folder: Path) -> subprocess.Popen[bytes]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env = {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LOGDIR": str(folder), **part.env}
    with (folder / f"{part.role}.log").open("wb") as log:
        return subprocess.Popen(part.command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], part: Part, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = (folder / f"{part.role}.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{part.role} did not start: {' '.join(part.command)}\n{tail}")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _answers(port: int, model: str) -> bool:
    """True once a chat gets its answer: then the model is loaded, and what is set up late is set up."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "w1 w2 w3"}], "max_tokens": 2}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bool(json.load(reply)["choices"])
    except (OSError, urllib.error.HTTPError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of it and of its children."""
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=15)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(10)
