"""The Redis of `penstock up`: our own on loopback with a random password and an append-only file, or a given one, checked.

The password stands in a config file and in `redis.url`, both readable by their owner only, never on a command line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path

import redis
from redis.exceptions import RedisError

from cli.lock import lock_within
from cli.processes import Part
from tasks.connections import connect
from tasks.errors import BadConfig
from tasks.redis_server import find_server

OLDEST = (6, 2)
CONFIG = """\
# Written anew by every `penstock up`.
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
pidfile "{folder}/redis.pid"
daemonize no
save ""
appendonly yes
appendfsync {appendfsync}
maxmemory-policy noeviction
"""


class EmbeddedRedis:
    """Our own server in the data directory. Raises `BadConfig` while an earlier one still has the same files."""

    def __init__(self, folder: Path, port: int, appendfsync: str) -> None:
        self._lock = _take_files(folder)
        password = secrets.token_urlsafe(24)
        self.address = f"127.0.0.1:{port}"
        self.url = f"redis://:{password}@{self.address}/0"
        config = folder / "redis.conf"
        quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
        write_private(config, CONFIG.format(port=port, password=password, folder=quoted, appendfsync=appendfsync))
        # SIGTERM, not SIGKILL, if the supervisor is killed: Redis then completes its append-only file, in milliseconds.
        # It inherits the lock of its files, so the next supervisor knows for certain whether it still runs.
        self.part = Part(
            name="redis",
            label="Redis",
            argv=(find_server(), str(config)),
            env={name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")},
            death_signal=signal.SIGTERM,
            pass_fds=(self._lock,),
            umask=0o077,  # prompts and answers stand in its file
        )

    def close(self) -> None:
        """Let go of the files; call once the server has ended."""
        os.close(self._lock)


def _take_files(folder: Path) -> int:
    """The lock of Redis' files. A server that a killed supervisor left behind gets a few seconds, then is ended."""
    fd = os.open(folder / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if lock_within(fd, 3.0):
        return fd
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((folder / "redis.pid").read_text()), signal.SIGKILL)  # it leads its own group: never a stranger's
    if lock_within(fd, 3.0):
        return fd
    os.close(fd)
    raise BadConfig(f"a Redis of an earlier run still uses {folder} (see redis.pid there): stop it first")


def check(url: str) -> str:
    """Refuse a Redis that is unreachable, too old or evicts keys; what to tell people of it, without the password."""
    with contextlib.closing(connect(url, "up")) as client:
        address = _address(client)
        try:
            server, memory, disk = (client.info(section) for section in ("server", "memory", "persistence"))
        except (RedisError, OSError) as error:
            raise BadConfig(
                f"Redis at {address}: {error}: start it, or unset PENSTOCK_REDIS_URL and REDIS_URL to use an embedded one",
                param="PENSTOCK_REDIS_URL",
            ) from None
    version = str(server["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise BadConfig(f"Redis at {address} is version {version}: 6.2 or newer is needed", param="PENSTOCK_REDIS_URL")
    policy = memory.get("maxmemory_policy")
    if policy != "noeviction":
        raise BadConfig(
            f"Redis at {address} may evict jobs (maxmemory-policy {policy}): "
            "run `redis-cli CONFIG SET maxmemory-policy noeviction`, and set it in redis.conf",
            param="PENSTOCK_REDIS_URL",
        )
    return address if disk.get("aof_enabled") else f"{address}, without append-only file: its restart loses jobs"


def _address(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def answers(url: str) -> bool:
    """Whether Redis answers, its data loaded."""
    try:
        with contextlib.closing(connect(url, "up")) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
