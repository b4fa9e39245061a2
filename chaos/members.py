"""The processes of the house: how each is started, and what is known of it from outside.

A member is a `cli.processes.Process`, so it has what `penstock up` gives its parts: a log of its own, a parent-death signal
and a watcher, and none outlives the harness, however that ends. Knows nothing of faults.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cli.processes import Part, Process, Watcher
from tasks.redis_server import find_server

ROOT = Path(__file__).resolve().parent.parent
Kind = Literal["redis", "api", "worker", "supervisor"]
#: How long a member that died stays away.
PAUSE_S = (0.1, 2.0)
#: Below the ports that the kernel gives to outgoing connections: those of a dead API are free for its next process.
PORTS = (15_000, 30_000)


class Member:
    """One process that is started again whenever it ends, unless a fault holds it down.

    `ready`: it was seen to serve since its last start. `held`: it is to stay down. `struck`: a fault is at it, others
    leave it alone. `last_end`: how its last process ended, as in "killed by SIGKILL" or "exit code 4". `fell`: how it
    ended when nobody had a hand in it; a SIGKILL is a poisoned job's doing.
    """

    def __init__(self, kind: Kind, part: Part, folder: Path, watcher: Watcher, model: str = "", url: str = "") -> None:
        self.kind = kind
        self.name = part.name
        self.model = model
        self.url = url
        self.ready = False
        self.held = False
        self.struck = False
        self.starts = 0
        self.last_end = ""
        self.fell: list[str] = []
        self._process = Process(part, folder, folder / "logs", watcher)
        self._due = 0.0

    def __repr__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    @property
    def pid(self) -> int | None:
        """The running process, if there is one; it may be stopped."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """A process runs."""
        return self._process.pid is not None

    @property
    def fit(self) -> bool:
        """It serves, and no fault is at it."""
        return self.alive and self.ready and not self.held and not self.struck

    @property
    def log(self) -> Path:
        """Where it writes."""
        return self._process.log

    def tend(self, rng: random.Random) -> None:
        """Notice its end; start it when it is due. From the main thread only."""
        now = time.monotonic()
        ended = self._process.poll()
        if ended is not None:
            self.ready, self.last_end = False, ended.reason
            if not self.struck and not self.held and "SIGKILL" not in ended.reason and not self._refused(ended.reason):
                self.fell.append(ended.reason)
            self._due = now + rng.uniform(*PAUSE_S)
        if not self.alive and not self.held and now >= self._due:
            self._process.start()
            self.starts += 1

    def _refused(self, reason: str) -> bool:
        """A supervisor that finds no Redis says so and does not start."""
        return self.kind == "supervisor" and reason == "exit code 2"

    def signal(self, number: signal.Signals) -> None:
        """Signal the process alone. Safe: until `tend` has reaped it, its pid is nobody else's."""
        if self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def end(self) -> None:
        """Ask it to end; one that is stopped is woken for that."""
        self.held = True
        self.signal(signal.SIGCONT)
        self._process.ask_to_end()

    def gone(self) -> bool:
        """True once an end that was asked for has come."""
        self._process.poll()
        return not self.alive

    def kill(self) -> None:
        """End it, and what is left of its group, at once."""
        self._process.kill()


def environ(settings: Mapping[str, str]) -> dict[str, str]:
    """What every member gets: the user's environment without settings of Penstock, and ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_", "CHAOS_"))}
    own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return kept | own | dict(settings)


def redis_part(name: str, folder: Path, port: int, appendfsync: str) -> Part:
    """A Redis that keeps every write in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "yes",
        "--appendfsync": appendfsync,
        "--maxmemory-policy": "noeviction",
    }
    argv = (find_server(), *(word for pair in options.items() for word in pair))
    return Part(name, "Redis", argv, environ({}))


def worker_part(name: str, orders: Path, settings: Mapping[str, str]) -> Part:
    """A worker with the saboteur in it."""
    argv = (*saboteur(orders), "celery", "-A", "workers.main", "worker")
    return Part(name, name, argv, environ(settings))


def api_part(name: str, orders: Path, settings: Mapping[str, str]) -> Part:
    """An API process, the saboteur in it only if guards are to be taken out."""
    argv = (*saboteur(orders), "api") if settings.get("CHAOS_BREAK") else (sys.executable, "-m", "api")
    return Part(name, name, argv, environ(settings))


def wing_part(name: str, orders: Path, settings: Mapping[str, str]) -> Part:
    """`penstock up` with parts of its own, at the Redis of the house. Its reapers would hide a guard that is missing
    elsewhere, so its parts lack it, too."""
    penstock: tuple[str, ...] = (str(Path(sys.executable).with_name("penstock")),)
    if settings.get("CHAOS_BREAK"):
        penstock = (*saboteur(orders), "penstock")
    return Part(name, name, (*penstock, "up", "--no-flower"), environ(settings))


def saboteur(orders: Path) -> tuple[str, ...]:
    """The command that runs a module of ours with the saboteur in it."""
    return (sys.executable, "-m", "chaos.saboteur", str(orders))


def free_port(rng: random.Random) -> int:
    """A port that nobody listens on, and that no outgoing connection will take."""
    for _ in range(1000):
        port = rng.randrange(*PORTS)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if there is no such process, or it is a zombie."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def children_of(pid: int) -> list[int]:
    """The children of a process."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def connect_aside(url: str) -> Redis:
    """The harness' own connections to the Redis of the house."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=5.0,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        client_name="chaos",
        socket_timeout=5.0,
        socket_connect_timeout=5.0,
    )
    return Redis.from_pool(pool)
