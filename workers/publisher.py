"""The thread that writes what the engine made: one `JobLedger.step` for all jobs of a step.

It is a thread of its own, so that the engine computes the next step while this one is written, and so that a slow or
absent Redis costs no generation until a job has `UNSENT_LIMIT` entries unsent. Then `full` holds the engine. What
gathers while a call is under way goes out with the next one, in order. A call that failed is repeated: the script skips
what is there already.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tasks.errors import StoreDown, StoreRefused
from tasks.ledger import Answer, JobLedger, Write
from workers.attempt import Attempt

log = logging.getLogger(__name__)

UNSENT_LIMIT = 256  # entries a job, then the engine pauses
CALL_LIMIT = 64  # entries a job in one call: after an outage no single call may hold Redis for long
RETRY_S = 0.2


class Engine(Protocol):
    """What the publisher asks of the engine's owner; see `workers.loop`."""

    def stop(self, attempt: Attempt) -> None:
        """Stop the job's sequences; its end follows."""

    def remove(self, attempt: Attempt) -> None:
        """Forget the job: it is no longer ours."""

    def wake(self) -> None:
        """Look again: the publisher has room, or a suspect has proved itself."""


class Publisher:
    """Sends outboxes and obeys the store's answers."""

    def __init__(
        self, ledger: JobLedger, engine: Engine, on_progress: Callable[[], None], lacking: Callable[[], int]
    ) -> None:
        self._ledger = ledger
        self._lacking = lacking  # places of the engine for one job more
        self._engine = engine
        self._on_progress = on_progress
        self._dirty: dict[Attempt, None] = {}  # in order of arrival
        self._sending = False
        self._closed = False
        self._away = False
        self._full = False
        self._changed = threading.Condition()

    @property
    def full(self) -> bool:
        """True while a job has as many unsent entries as it may."""
        return self._full

    def publish(self, attempts: Iterable[Attempt]) -> None:
        """Send what these attempts have in their outboxes, soon. Never blocks."""
        with self._changed:
            for attempt in attempts:
                self._dirty[attempt] = None
                self._full = self._full or attempt.outbox.unsent() >= UNSENT_LIMIT
            self._changed.notify_all()

    def obey(self, attempt: Attempt, answer: Answer) -> None:
        """Do what the store says of a running job. Repeating an order changes nothing."""
        match answer.verdict:
            case "cancel" | "deadline":
                if attempt.stopping is None:
                    attempt.stopping = answer.verdict
                    self._engine.stop(attempt)
            case "behind" if attempt.outbox.rewind(answer.seq):
                log.warning("job %s: the log lost what follows entry %d, sending it again", attempt.job, answer.seq)
                self.publish([attempt])
            case "fenced" | "lost" | "behind" | "yield":
                attempt.over("yielded" if answer.verdict == "yield" else "lost")
                self._engine.remove(attempt)

    def run(self) -> None:
        """The thread's body."""
        while batch := self._next():
            sent = self._send(batch)
            self._settle(batch)
            if not sent:
                self._pause()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written. False: the time was too short."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._dirty and not self._sending, timeout_s)

    def close(self) -> None:
        """End the thread after the call that is under way; what is unsent stays unsent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> list[Attempt]:
        with self._changed:
            self._changed.wait_for(lambda: self._dirty or self._closed)
            batch = [] if self._closed else list(self._dirty)
            self._dirty.clear()
            self._sending = bool(batch)
            return batch

    def _send(self, batch: list[Attempt]) -> bool:
        pairs = [
            (attempt, write)
            for attempt in batch
            if not attempt.is_over and (write := attempt.outbox.write(CALL_LIMIT)) is not None
        ]
        if not pairs:
            return True
        try:
            self._step(pairs)
        except StoreDown as error:
            if not self._away:
                log.warning("the log cannot be written, trying again: %s", error)
            self._away = True
            return False
        if self._away:
            log.warning("the log can be written again")
        self._away = False
        return True

    def _step(self, pairs: Sequence[tuple[Attempt, Write]]) -> None:
        try:
            answers = self._ledger.step([write for _, write in pairs], self._lacking())
        except StoreRefused as error:
            self._step_apart(pairs, error)
            return
        for (attempt, write), answer in zip(pairs, answers, strict=True):
            self._learn(attempt, write, answer)

    def _step_apart(self, pairs: Sequence[tuple[Attempt, Write]], error: StoreRefused) -> None:
        """One call a job: a record that Redis chokes on must not hold the others up, and is let go of."""
        if len(pairs) > 1:
            for pair in pairs:
                self._step([pair])
            return
        ((attempt, _),) = pairs
        log.error("job %s is let go of, its log cannot be written: %s", attempt.job, error)
        self.obey(attempt, Answer("lost"))

    def _learn(self, attempt: Attempt, write: Write, answer: Answer) -> None:
        if answer.verdict in ("ok", "cancel", "deadline"):
            attempt.outbox.confirm(write)
            if write.end:
                attempt.over(write.end)
            if attempt.suspect and attempt.outbox.progressed:
                attempt.suspect = False
                self._on_progress()
                self._engine.wake()
        self.obey(attempt, answer)

    def _settle(self, batch: list[Attempt]) -> None:
        """Keep for the next call what is still unsent, and let the engine go on when there is room."""
        with self._changed:
            for attempt in batch:
                if not attempt.is_over and attempt.outbox.unsent():
                    self._dirty[attempt] = None
            was_full = self._full
            self._full = any(a.outbox.unsent() >= UNSENT_LIMIT for a in self._dirty if not a.is_over)
            self._sending = False
            self._changed.notify_all()
        if was_full and not self._full:
            self._engine.wake()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, RETRY_S)
