"""One supervisor per data directory: a file lock that the kernel drops when its owner dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tasks.errors import BadConfig


class DirLock:
    """The lock file of a data directory, holding the owner's pid. Raises `BadConfig` naming the owner if it is taken."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(self._fd):
            owner = os.read(self._fd, 32).decode().strip() or "?"
            os.close(self._fd)
            raise BadConfig(
                f"another `penstock up` (pid {owner}) uses {path.parent}: stop it, or set PENSTOCK_DATA_DIR",
                param="PENSTOCK_DATA_DIR",
            )
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file, if nobody has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(fd: int, seconds: float) -> bool:
    """Take the lock as soon as it is free; False if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not try_lock(fd):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
