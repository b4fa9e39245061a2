"""Two Redis servers under a Sentinel: when the primary dies the other one takes over, without what it had not yet got.

Sentinel decides; the address that the house uses follows its decision. A server that comes back becomes the replica.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.front import Front
from chaos.members import Member
from tasks.redis_server import find_server

#: Sentinel fails over again only after twice the failover timeout.
CONFIG = """\
port {port}
bind 127.0.0.1
dir "{folder}"
sentinel monitor pool 127.0.0.1 {primary} 1
sentinel down-after-milliseconds pool 500
sentinel failover-timeout pool {timeout_ms}
"""
LOOK_S = 0.1


def sentinel_command(folder: Path, port: int, primary: int, timeout_ms: int = 3000) -> tuple[str, ...]:
    """Sentinel keeps its state in its configuration file, so that one is written here. `timeout_ms`: of a failover."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "sentinel.conf"
    config.write_text(CONFIG.format(port=port, folder=folder, primary=primary, timeout_ms=timeout_ms))
    return (find_server(), str(config), "--sentinel")


class Pair:
    """`servers` are known by their ports; `primary` is the one that the address leads to."""

    def __init__(self, port: int, servers: dict[int, Member], sentinel: Member, sentinel_port: int) -> None:
        self._servers = servers
        self._sentinel = sentinel
        self._primary = next(iter(servers))
        self._front = Front(self._primary, port)
        self._deciding = False
        names = (*servers, sentinel_port)
        self._clients = {each: Redis(port=each, decode_responses=True, socket_timeout=2.0) for each in names}
        self._sentinel_port = sentinel_port

    @property
    def primary(self) -> Member:
        """Where the address leads."""
        return self._servers[self._primary]

    @property
    def others(self) -> tuple[Member, Member]:
        """The replica and the Sentinel."""
        return self._servers[self._other()], self._sentinel

    async def look(self) -> None:
        """Make a server that came back the replica; notice whether it is in step and Sentinel knows of it."""
        replica, other = self.others[0], self._other()
        with suppress(RedisError, OSError):
            replica.ready = self._sentinel.ready = False
            if self._deciding or not replica.alive:
                return
            state = await self._replication(other)
            if state["role"] == "master" and not self._deciding:
                await self._client(other).replicaof("127.0.0.1", self._primary)
            replica.ready = state.get("master_link_status") == "up"
            known = await self._client(self._sentinel_port).execute_command("SENTINEL", "REPLICAS", "pool")
            self._sentinel.ready = any(row["flags"] == "slave" for row in map(_row, known))

    async def fail_over(self, seconds: float) -> bool:
        """The primary is dead: wait until Sentinel has chosen the other one, and lead there. False: it never did."""
        deadline = time.monotonic() + seconds
        self._deciding = True
        try:
            while not await self._promoted():
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(LOOK_S)
        finally:
            self._deciding = False
        self._primary = self._other()
        self._front.point(self._primary)
        return True

    async def close(self) -> None:
        """End the address."""
        await asyncio.to_thread(self._front.close)
        for client in self._clients.values():
            await client.aclose()

    def _other(self) -> int:
        return next(port for port in self._servers if port != self._primary)

    def _client(self, port: int) -> Any:
        return self._clients[port]

    async def _promoted(self) -> bool:
        try:
            return bool((await self._replication(self._other()))["role"] == "master")
        except (RedisError, OSError):  # Sentinel cuts everybody off when it changes a role
            return False

    async def _replication(self, port: int) -> dict[str, Any]:
        found: dict[str, Any] = await self._client(port).info("replication")
        return found


def _row(found: Any) -> dict[str, str]:
    return dict(found) if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
