"""The thread that owns the engine. Nobody else calls it.

Everybody else posts orders to its inbox. Between two steps it takes the orders, brings the engine's batch in line with
the live attempts, and after each step hands the events on. It notes when it called the engine, so that a hung call can
be told from an idle engine. It never touches Redis.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

from workers.attempt import Attempt, Choice
from workers.engine.base import Engine, Event, InvalidRequest
from workers.publisher import Publisher

log = logging.getLogger(__name__)


class Order(Enum):
    """What the inbox can hold, with an attempt or None."""

    SUBMIT = auto()
    STOP = auto()
    REMOVE = auto()
    WAKE = auto()
    EXIT = auto()


class EngineLoop:
    """Runs an engine. `run` is the thread's body; the other public methods only post orders and return at once."""

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._build = build
        self._inbox: queue.SimpleQueue[tuple[Order, Attempt | None]] = queue.SimpleQueue()
        self._live: dict[Attempt, None] = {}  # in order of arrival
        self._placed: set[Attempt] = set()  # those of them that are with the engine
        self._rids: dict[str, tuple[Attempt, Choice]] = {}
        self._withdrawn: set[str] = set()  # their next "cancelled" is ours, not the job's
        self._touched: dict[Attempt, None] = {}
        self._called_at: float | None = None
        self.engine: Engine | None = None
        self.load_error: Exception | None = None
        self.loaded = threading.Event()
        self.exited = threading.Event()

    def submit(self, attempt: Attempt) -> None:
        """Run the open choices of a restored attempt."""
        self._inbox.put((Order.SUBMIT, attempt))

    def stop(self, attempt: Attempt) -> None:
        """Stop the job's sequences; its end follows."""
        self._inbox.put((Order.STOP, attempt))

    def remove(self, attempt: Attempt) -> None:
        """Forget the job: it is no longer ours."""
        self._inbox.put((Order.REMOVE, attempt))

    def wake(self) -> None:
        """Look again."""
        self._inbox.put((Order.WAKE, None))

    def exit(self) -> None:
        """End the thread after the step that runs; its events still reach the publisher."""
        self._inbox.put((Order.EXIT, None))

    def step_age(self) -> float:
        """For how many seconds the engine has been in the current call; 0 when it is idle."""
        called_at = self._called_at
        return 0.0 if called_at is None else time.monotonic() - called_at

    def load_engine(self) -> None:
        """Build the engine, in this thread; a failure is kept in `load_error`."""
        try:
            self.engine = self._build()
        except Exception as error:  # whatever a model's loading raises is for the operator to read
            log.exception("the model did not load")
            self.load_error = error
        finally:
            self.loaded.set()

    def run(self, publisher: Publisher) -> None:
        """The thread's body. Raises when the engine cannot be used any more."""
        self.load_engine()
        engine = self.engine
        if engine is None:
            return
        while self._take_orders(engine, publisher):
            if self._live or engine.has_work():
                self._call(engine, publisher)
            if self._touched:
                publisher.publish(self._touched)
                self._touched.clear()
        self.exited.set()
        engine.close()

    def _take_orders(self, engine: Engine, publisher: Publisher) -> bool:
        """Obey what is in the inbox; wait for an order when there is nothing to step. False: exit."""
        idle = not (self._live or engine.has_work()) or publisher.full
        try:
            order, attempt = self._inbox.get(block=idle)
            while order is not Order.EXIT:
                if attempt is not None:
                    self._obey(engine, order, attempt)
                order, attempt = self._inbox.get_nowait()
            return False
        except queue.Empty:
            return True

    def _obey(self, engine: Engine, order: Order, attempt: Attempt) -> None:
        if order is Order.SUBMIT and not attempt.is_over:
            self._live[attempt] = None
            self._touched[attempt] = None
            if attempt.end_if_done():
                self._forget(engine, attempt)
        if attempt not in self._live:
            return
        if order is Order.REMOVE or attempt.is_over:
            self._forget(engine, attempt)
        elif attempt.stopping is not None and attempt not in self._placed:
            self._end_stopped(engine, attempt)
        elif attempt.stopping is not None:
            for choice in attempt.open_choices():
                engine.cancel(attempt.rid(choice))

    def _call(self, engine: Engine, publisher: Publisher) -> None:
        """One step of the engine, with its batch brought in line before."""
        self._called_at = time.monotonic()
        try:
            self._place(engine)
            if publisher.full:
                return
            try:
                events = engine.step()
            except Exception as error:
                log.warning("a step failed, recovering: %s: %s", type(error).__name__, error)
                engine.recover()
                return
            for event in events:
                self._take(engine, event)
        finally:
            self._called_at = None

    def _place(self, engine: Engine) -> None:
        """A suspect runs alone, the others wait for it; without one, everybody runs."""
        alone = next((attempt for attempt in self._live if attempt.suspect), None)
        for attempt in list(self._live):
            if alone is not None and attempt is not alone:
                self._withdraw(engine, attempt)
            elif attempt not in self._placed:
                self._submit(engine, attempt)

    def _submit(self, engine: Engine, attempt: Attempt) -> None:
        self._placed.add(attempt)
        for choice, request in attempt.requests():
            try:
                engine.submit(request)
            except InvalidRequest as error:
                attempt.fail(error.code, str(error))
                self._touched[attempt] = None
                self._forget(engine, attempt)
                return
            self._rids[request.rid] = (attempt, choice)

    def _end_stopped(self, engine: Engine, attempt: Attempt) -> None:
        attempt.stop()
        self._touched[attempt] = None
        self._forget(engine, attempt)

    def _withdraw(self, engine: Engine, attempt: Attempt) -> None:
        if attempt.stopping is not None:  # its last events would be taken for those of a withdrawal, and it would go on
            self._end_stopped(engine, attempt)
        elif attempt in self._placed:
            self._placed.discard(attempt)
            for choice in attempt.open_choices():
                rid = attempt.rid(choice)
                engine.cancel(rid)
                self._withdrawn.add(rid)

    def _forget(self, engine: Engine, attempt: Attempt) -> None:
        self._live.pop(attempt, None)
        self._placed.discard(attempt)
        for rid in attempt.rids():
            engine.cancel(rid)  # one that has ended already is ignored
            self._rids.pop(rid, None)
            self._withdrawn.discard(rid)

    def _take(self, engine: Engine, event: Event) -> None:
        if event.rid in self._withdrawn and event.finish == "cancelled":
            self._withdrawn.discard(event.rid)
            return
        if event.rid not in self._rids:
            return
        attempt, choice = self._rids[event.rid]
        attempt.take(choice, event)
        self._touched[attempt] = None
        if attempt.complete:
            self._forget(engine, attempt)
