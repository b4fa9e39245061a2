"""The two small programs that tie child processes to their supervisor, so that none outlives it.

    guard.py exec <signal> <parent pid> <argv…>   becomes argv, which gets <signal> when the parent dies (Linux)
    guard.py watch                                reads "+pgid signal" and "-pgid"; at the end of its input, which comes
                                                  when the supervisor dies, it signals the groups, then kills them

The kernel's signal needs no other process; the watcher reaches whole process groups, on every platform. Run as files
with `python -I -S`: standard library only, and nothing heavy, since every part starts through here.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
#: What a part that was asked to end (Redis, which writes its log) has before it is killed.
GRACE_S = 1.2


def leash(number: int, parent: int) -> None:
    """Have the kernel signal this process when its parent ends; end at once if that has happened already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def watch() -> None:
    """Remember the groups that stdin names; signal them when it ends."""
    groups: dict[int, int] = {}
    for line in sys.stdin:
        group, *number = line.split()
        if number:
            groups[int(group)] = int(number[0])
        else:
            groups.pop(-int(group), None)
    for group, first in groups.items():
        _signal(group, first)
    deadline = time.monotonic() + GRACE_S
    while any(_signal(group, 0) for group in groups) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Signal a whole group; False if it is gone. 0 only looks."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch()
    else:
        leash(int(sys.argv[2]), int(sys.argv[3]))
        os.execvp(sys.argv[4], sys.argv[4:])
