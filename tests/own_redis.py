"""A Redis that one test owns: it can be killed, stopped, started again, filled up."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tasks.redis_server import find_server
from tests.processes import free_port, wait_until


class OwnRedis:
    """Keeps its data in `folder` over restarts; every write is on disk before it is answered."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [find_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> OwnRedis:
        """Start it and wait until it answers, its data loaded."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            wait_until(lambda: answers(client), "Redis")
        return self

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def hang(self) -> None:
        """It says nothing any more, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `hang`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def answers(client: redis.Redis) -> bool:
    """Whether a server answers, its data loaded."""
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def own_redis(folder: Path, *options: str) -> Iterator[OwnRedis]:
    """A running one, killed in the end. Of two equal options the later counts."""
    made = OwnRedis(folder / "redis", *options)
    try:
        yield made.start()
    finally:
        made.kill()
