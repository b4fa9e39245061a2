"""A primary, its replica, a Sentinel, and one address in front of whichever of the two is the primary.

Sentinel chooses; the address follows, as a virtual IP, a proxy or a Kubernetes service does. The replica's link runs
through an address of its own, so that it can fall behind when a test wants it to.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from chaos.front import Front
from chaos.pair import sentinel_command
from tests.own_redis import OwnRedis, answers
from tests.processes import free_port, wait_until


class Pair:
    """`front` is what clients know; `fail_over` kills the primary and waits until Sentinel has made the replica one."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.primary = OwnRedis(folder / "primary", *options).start()
        self.link = Front(self.primary.port)
        self.replica = OwnRedis(folder / "replica", "--replicaof", "127.0.0.1", str(self.link.port)).start()
        self.front = Front(self.primary.port)
        self._sentinel, self._port = _start_sentinel(folder, self.primary.port)
        wait_until(self._in_step, "a replica that Sentinel knows")

    def fail_over(self) -> None:
        """The primary dies; the address follows once Sentinel has decided."""
        self.primary.kill()
        self._promoted()
        self.front.point(self.replica.port)

    def hand_over(self, late_s: float) -> None:
        """Both live and change their roles; the address follows so late, and leads to a read-only one meanwhile."""
        with redis.Redis.from_url(f"redis://127.0.0.1:{self._port}/0", decode_responses=True) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", "pool")
        self._promoted()
        with redis.Redis.from_url(self.primary.url) as client:
            client.replicaof("127.0.0.1", str(self.replica.port))  # Sentinel takes ten seconds for it
        time.sleep(late_s)
        self.front.point(self.replica.port)

    def _promoted(self) -> None:
        with redis.Redis.from_url(self.replica.url, decode_responses=True) as client:
            wait_until(lambda: self._role(client) == "master", "the replica's promotion", 20)

    def close(self) -> None:
        """End everything."""
        self._sentinel.kill()
        self._sentinel.wait(10)
        for front in (self.front, self.link):
            front.close()
        for server in (self.replica, self.primary):
            server.kill()

    def _in_step(self) -> bool:
        with redis.Redis.from_url(f"redis://127.0.0.1:{self._port}/0", decode_responses=True) as sentinel:
            if not answers(sentinel):
                return False
            replicas: Any = sentinel.execute_command("SENTINEL REPLICAS", "pool")
        with redis.Redis.from_url(self.replica.url, decode_responses=True) as client:
            up: Any = client.info("replication")["master_link_status"]
        return len(replicas) == 1 and up == "up"

    def _role(self, client: redis.Redis) -> str:
        try:
            replication: Any = client.info("replication")
        except redis.ConnectionError:  # Sentinel cuts everybody off when it changes a role
            return ""
        return str(replication["role"])


def _start_sentinel(folder: Path, primary: int) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command = sentinel_command(folder, port, primary, timeout_ms=60_000)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL), port


@contextmanager
def pair(folder: Path, *options: str) -> Iterator[Pair]:
    """A running pair under Sentinel; `options` are the primary's."""
    made = Pair(folder, *options)
    try:
        yield made
    finally:
        made.close()
