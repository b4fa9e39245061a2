"""Once a second: shows the worker's card, tells the API how to tokenise for its model, and reaps.

The profile is published before the worker first shows itself as ready, and again after every outage of Redis, which may
have lost it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from tasks.errors import StoreDown
from tasks.ledger import JobLedger
from tasks.profile import ModelProfile, WorkerCard

log = logging.getLogger(__name__)

BEAT_S = 1.0
CARD_TTL_S = 3.0
FAILED_TTL_S = 60.0


class Heartbeat:
    """`run` is the thread's body; `card` makes the card of this moment."""

    def __init__(self, ledger: JobLedger, card: Callable[[], WorkerCard]) -> None:
        self._ledger = ledger
        self._card = card
        self._profile: ModelProfile | None = None
        self._profile_due = False
        self._error: str | None = None
        self._away = False
        self._beating = threading.Lock()  # the last card must be the last one written
        self._closed = threading.Event()

    def publish(self, profile: ModelProfile) -> None:
        """Tell the API about the model, now if Redis answers, else with a later beat."""
        self._profile, self._profile_due = profile, True
        self.beat()

    def failed(self, error: str) -> None:
        """Leave a last card that says why the model did not load."""
        self._error = error
        self.beat()

    def run(self) -> None:
        """The thread's body."""
        while not self._closed.is_set():
            if self.beat():
                self._reap()
            self._closed.wait(BEAT_S)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def beat(self) -> bool:
        """Show the card once. False: Redis does not answer."""
        try:
            with self._beating:
                self._show()
        except StoreDown as error:
            if not self._away:
                log.warning("Redis does not answer: %s", error)
            self._away = self._profile_due = True
            return False
        if self._away:
            log.warning("Redis answers again")
        self._away = False
        return True

    def _show(self) -> None:
        card = self._card()
        if self._error is not None:
            self._ledger.beat(replace(card, state="failed", error=self._error), FAILED_TTL_S)
            return
        if self._profile is not None and self._profile_due:
            self._ledger.publish_profile(card.model, self._profile)
            self._profile_due = False
        self._ledger.beat(card, CARD_TTL_S)

    def _reap(self) -> None:
        try:
            requeued, *_ = self._ledger.reap()
        except StoreDown:
            return  # the next beat says so
        if requeued:
            log.info("%d jobs had lost their worker: back in line", requeued)
