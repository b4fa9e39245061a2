"""Redis' append-only file seen from outside: how much of it a power cut would have left.

A SIGKILL loses nothing that Redis has written: the kernel keeps it. A host that loses its power loses what was not yet
synced, which is what `appendfsync everysec` risks. `cut` does that to the file of a dead server.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: `everysec` syncs once a second.
UNSYNCED_S = 1.0


@dataclass(frozen=True)
class _Size:
    at: float
    inode: int
    size: int


class AppendOnlyFile:
    """Call `sample` often while the server runs; `cut` once it is dead."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._sizes: deque[_Size] = deque(maxlen=200)

    def sample(self) -> None:
        """Remember how long the file is now."""
        path = self._newest()
        if path is not None:
            status = path.stat()
            self._sizes.append(_Size(self._clock(), status.st_ino, status.st_size))

    def cut(self) -> int:
        """Take away what was written within the last second; how many bytes that was. A file that was just rewritten
        stays whole."""
        path = self._newest()
        if path is None:
            return 0
        now, status = self._clock(), path.stat()
        synced = [one for one in self._sizes if one.inode == status.st_ino and now - one.at >= UNSYNCED_S]
        if not synced or synced[-1].size >= status.st_size:
            return 0
        os.truncate(path, synced[-1].size)
        return status.st_size - synced[-1].size

    def _newest(self) -> Path | None:
        """Redis 6 has one file, later ones a folder of them, of which only the last one grows."""
        found = [*self._folder.glob("*.aof"), *self._folder.glob("*/*.incr.aof")]
        try:
            return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
        except OSError:  # renamed in this moment
            return None
