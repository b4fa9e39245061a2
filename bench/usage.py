"""Processor time and memory of a system's processes while a load runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import psutil  # type: ignore[import-untyped]

#: Seconds between two looks. Each costs a millisecond or two; a process that is born and dies between them is not seen.
INTERVAL_S = 0.5


@dataclass(frozen=True)
class Used:
    """By a part of a system, its children included: processor seconds, and the most memory that was seen resident."""

    cpu_s: float
    peak_rss: int


class Usage:
    """Watches from `with` to its end; then `used` says what each role took."""

    def __init__(self, roles: dict[str, int]) -> None:
        self._roles = roles
        self._first: dict[int, float] = {}
        self._last: dict[int, tuple[str, float]] = {}
        self._peak: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Usage:
        self._look(opening=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    @property
    def used(self) -> dict[str, Used]:
        """By role."""
        cpu: dict[str, float] = dict.fromkeys(self._peak, 0.0)
        for pid, (role, seconds) in self._last.items():
            cpu[role] += seconds - self._first.get(pid, 0.0)
        return {role: Used(cpu[role], self._peak[role]) for role in cpu}

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._look()

    def _look(self, opening: bool = False) -> None:
        resident: dict[str, int] = {}
        for root, pid in self._roles.items():
            for process in _family(pid):
                with suppress(psutil.Error), process.oneshot():
                    role = _role(root, process)
                    times = process.cpu_times()
                    self._last[process.pid] = role, times.user + times.system
                    if opening:
                        self._first[process.pid] = times.user + times.system
                    resident[role] = resident.get(role, 0) + process.memory_info().rss
        for role, size in resident.items():
            self._peak[role] = max(self._peak.get(role, 0), size)


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _role(root: str, process: psutil.Process) -> str:
    """vLLM names its children, as in VLLM::EngineCore."""
    _, mark, own = process.name().partition("::")
    return own if mark else root
