"""Keeps the leases of the jobs that this worker holds, and ends a process whose engine hangs.

A job is held from its claim to the end of its attempt. All leases are renewed in one call every third of a lease, but
only while the engine is idle or its current call is young: a hung engine must lose its jobs. Then the process ends the
hard way, because nothing else frees a stuck device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tasks.errors import StoreDown
from tasks.ledger import Answer, JobLedger
from tasks.settings import Settings
from workers.attempt import Attempt

log = logging.getLogger(__name__)

WATCH_S = 0.5  # how often the engine's step is looked at, at least
STOPPED_S = 0.5  # a look that is so late means that the process did not run meanwhile


class LeaseKeeper:
    """Renews leases. `run` is the thread's body; the other methods are safe from any thread."""

    def __init__(
        self,
        ledger: JobLedger,
        settings: Settings,
        obey: Callable[[Attempt, Answer], None],
        step_age: Callable[[], float],
        on_hang: Callable[[float], None],
    ) -> None:
        self._ledger = ledger
        self._obey = obey
        self._step_age = step_age
        self._on_hang = on_hang
        self._step_timeout_s = settings.step_timeout_s
        self._renew_s = settings.lease_s / 3
        self._watch_s = min(self._renew_s, settings.step_timeout_s / 4, WATCH_S)
        self._held: dict[Attempt, None] = {}
        self._released = False
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def hold(self, attempt: Attempt) -> bool:
        """Renew this attempt's lease from now on. False: the worker has given its jobs back already."""
        with self._lock:
            if not self._released:
                self._held[attempt] = None
            return not self._released

    def drop(self, attempt: Attempt) -> None:
        """Renew it no longer."""
        with self._lock:
            self._held.pop(attempt, None)

    def held(self) -> list[Attempt]:
        """The attempts whose leases are renewed."""
        with self._lock:
            return list(self._held)

    def release_all(self) -> list[Attempt]:
        """Take in no more attempts, and return those held, which the caller gives back."""
        with self._lock:
            self._released = True
            return list(self._held)

    def run(self) -> None:
        """The thread's body."""
        looked = awake_since = time.monotonic()
        due = looked + self._renew_s
        while not self._closed.wait(min(self._watch_s, max(0.0, due - time.monotonic()))):
            now = time.monotonic()
            if now - looked > self._watch_s + STOPPED_S:
                awake_since = now  # the whole process was stopped: its engine could not go on either
            looked = now
            age = min(self._step_age(), now - awake_since)
            if age > self._step_timeout_s:
                self._on_hang(age)
                return
            if time.monotonic() >= due:
                due = time.monotonic() + self._renew_s
                self._renew()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _renew(self) -> None:
        held = [attempt for attempt in self.held() if not attempt.is_over]
        if not held:
            return
        try:
            answers = self._ledger.renew([(one.job, one.fence, one.outbox.logged) for one in held])
        except StoreDown as error:
            log.warning("leases cannot be renewed: %s", error)
            return
        for attempt, answer in zip(held, answers, strict=True):
            # A job that ended while the call was under way is answered "lost": its end is known already.
            if not attempt.is_over and not (answer.verdict == "lost" and attempt.complete):
                self._obey(attempt, answer)
