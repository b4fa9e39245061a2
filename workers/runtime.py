"""All parts of a worker process and the order in which they start and stop.

    start   heartbeat (card: loading) → engine thread loads the model → publisher, leases → profile, card: ready
            → only then does Celery consume tickets
    drain   admission closed → draining in the store: nothing is claimed any more → the engine ends its step
            → publisher flushed → every job released with its tokens → leases, publisher, heartbeat end;
            whatever holds this up, the process is gone after `DRAIN_LIMIT_S`

Threads: Celery's hub, the lanes, the engine, the publisher, the leases, the heartbeat, and one that waits for the word
to drain. Lanes wait, the engine computes, only the publisher writes logs. A thread that fails in a way nobody foresaw
ends the process: its leases lapse and other workers go on, which is safer than half a worker that renews for ever.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from tasks.catalog import ModelEntry
from tasks.connections import connect
from tasks.errors import StoreDown
from tasks.ledger import JobLedger
from tasks.profile import WorkerCard
from tasks.settings import Settings, redis_url
from workers.admission import Admission
from workers.attempt import Attempt
from workers.engine.base import Engine
from workers.engine.registry import EngineSpec, build
from workers.generate import Lanes
from workers.heartbeat import Heartbeat
from workers.lease import LeaseKeeper
from workers.loop import EngineLoop
from workers.publisher import Publisher

log = logging.getLogger(__name__)

EXIT_LOAD_FAILED = 3
EXIT_ENGINE_DEAD = 4
EXIT_HUNG = 5
EXIT_BUG = 6

CONNECTIONS = 16  # lanes need one only while they claim and read
STEP_GRACE_S = 2.0  # how long a drain waits for the step that runs
FLUSH_S = 1.0
DRAIN_LIMIT_S = 5.0  # then the process goes: a silent Redis would hold the drain, and Celery after it


class WorkerRuntime:
    """One worker process. `start`, then `begin_drain` (from anywhere, also a signal), then `stop`."""

    def __init__(self, settings: Settings, entry: ModelEntry, name: str, gpus: list[int]) -> None:
        self._settings = settings
        self._entry = entry
        self.name = name
        self._gpus = gpus
        self._state: Literal["loading", "ready", "draining"] = "loading"
        self._progress = ""
        self._device = entry.device
        self._started = time.time()
        self._pace = Pace()
        lanes = entry.max_num_seqs
        self._ledger = JobLedger(connect(redis_url(settings), "worker", CONNECTIONS), settings)
        self._loop = EngineLoop(self._build_engine)
        self._admission = Admission(lanes)
        self._publisher = Publisher(self._ledger, self._loop, self._admission.wake, lambda: self._admission.lacking)
        self._keeper = LeaseKeeper(self._ledger, settings, self._publisher.obey, self._loop.step_age, self._hung)
        self._heartbeat = Heartbeat(self._ledger, self.card)
        # Not an Event: its lock could be held by the very code that a signal interrupts.
        self._drain_wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._drained = threading.Event()
        self.lanes = Lanes(self._ledger, self._admission, self._keeper, self._loop, entry.name, name)

    def start(self, check: Callable[[], None]) -> None:
        """Load the model and be ready. `check` is called while it loads, and raises to give up."""
        self._spawn("heartbeat", self._heartbeat.run)
        self._engine_thread = self._spawn("engine", self._run_engine)
        while not self._loop.loaded.wait(0.2):
            check()
        engine = self._loop.engine
        if engine is None:
            self._heartbeat.failed(str(self._loop.load_error) or type(self._loop.load_error).__name__)
            raise SystemExit(EXIT_LOAD_FAILED)
        self._spawn("publisher", self._publisher.run)
        self._spawn("leases", self._keeper.run)
        self._heartbeat.publish(replace(engine.profile, max_num_seqs=engine.max_num_seqs))
        self._state = "ready"
        self._heartbeat.beat()
        self._spawn("drain", self._drain)
        log.info("%s serves %s on %d lanes", self.name, self._entry.name, engine.max_num_seqs)

    def begin_drain(self) -> None:
        """Give the jobs back and stop; returns at once. Safe in a signal's callback."""
        self._drain_wanted.put(None)

    def stop(self) -> None:
        """Drain, if that has not begun, and wait for it."""
        self.begin_drain()
        if self._state != "loading":
            self._drained.wait(self._settings.step_timeout_s)
            self._replace_tickets()
            self._engine_thread.join(STEP_GRACE_S)  # closing the engine while the interpreter ends can crash it

    def card(self) -> WorkerCard:
        """How the worker looks at this moment."""
        engine = self._loop.engine
        load = None if engine is None else engine.load()
        tokens = 0 if load is None else load.tokens
        return WorkerCard(
            name=self.name,
            model=self._entry.name,
            engine=self._entry.engine,
            state=self._state,
            gpus=self._gpus,
            device=self._device if engine is None else self._find_device(),
            lanes=self._entry.max_num_seqs,
            running=len(self._keeper.held()),
            host=platform.node(),
            pid=os.getpid(),
            started=self._started,
            heartbeat=time.time(),
            tokens=tokens,
            tokens_per_s=self._pace.tokens_per_s(tokens),
            kv_used=0.0 if load is None else load.kv_used,
            progress=self._progress if self._state == "loading" else "",
        )

    def _drain(self) -> None:
        self._drain_wanted.get()
        limit = threading.Timer(DRAIN_LIMIT_S, self._cut_drain)
        limit.daemon = True
        limit.start()
        self._state = "draining"
        self._admission.close()
        try:
            self._ledger.drain(self.name)
        except StoreDown as error:
            log.warning("draining without the store's knowledge: %s", error)
        self._heartbeat.beat()  # the last card outlives the process: it must not say ready
        self._loop.exit()
        if not self._loop.exited.wait(STEP_GRACE_S):
            log.warning("the engine's step takes long: giving its jobs back without it")
        self._publisher.flush(FLUSH_S)
        count = self._release(self._keeper.release_all())
        log.info("drained: %d jobs given back", count)
        for part in (self._keeper, self._publisher, self._heartbeat):
            part.close()
        self._drained.set()

    def _replace_tickets(self) -> None:
        """Those that lanes took and dropped while draining; only now does this process take no more. A reaper would
        replace them, too, up to a second later: a pause that the jobs given back need not have."""
        with suppress(StoreDown):
            self._ledger.reap()

    def _cut_drain(self) -> None:
        log.warning("the drain takes too long: the process ends, what it still holds lapses with its lease")
        leave(0)

    def _release(self, attempts: list[Attempt]) -> int:
        """Give jobs back with their tokens. What cannot be given back lapses with its lease."""
        released = 0
        try:
            for attempt in attempts:
                if not attempt.is_over:
                    released += self._ledger.release(attempt.job, attempt.fence)
        except StoreDown as error:
            log.warning("jobs cannot be given back, their leases will lapse: %s", error)
        for attempt in attempts:
            attempt.over("released")
        return released

    def _run_engine(self) -> None:
        try:
            self._loop.run(self._publisher)
        except Exception as error:
            log.exception("the engine is dead")
            self._engine_died(error)

    def _engine_died(self, error: Exception) -> None:
        """Jobs that made progress go back at once. The others lapse: one of them may be what killed the engine, and a
        lost lease without a new token is how a poisoned job is found out."""
        self._admission.close()
        self._publisher.flush(FLUSH_S)
        self._release([one for one in self._keeper.release_all() if one.outbox.progressed and not one.is_over])
        leave(EXIT_ENGINE_DEAD)

    def _hung(self, age: float) -> None:
        log.critical("the engine hangs: its call began %.1f s ago. The process ends, its jobs go on elsewhere", age)
        leave(EXIT_HUNG)

    def _build_engine(self) -> Engine:
        entry = self._entry
        same = {"path", "dtype", "device", "max_num_seqs", "max_model_len", "quantization"}
        spec = EngineSpec(**entry.model_dump(include=same), gpus=len(self._gpus), progress=self._note_progress)
        return build(entry.engine, spec)

    def _note_progress(self, line: str) -> None:
        log.info(line)
        self._progress = line

    def _find_device(self) -> str:
        """What the loaded engine runs on; only asked after loading, since torch is half imported before."""
        if self._device == "auto":
            torch = sys.modules.get("torch") if self._entry.engine != "onnx" else None
            self._device = "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
        return self._device

    def _spawn(self, name: str, body: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                body()
            except BaseException:
                log.critical("the %s thread failed: the process ends", name, exc_info=True)
                leave(EXIT_BUG)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


class Pace:
    """Tokens per second between two looks."""

    def __init__(self) -> None:
        self._tokens = 0
        self._at = time.monotonic()

    def tokens_per_s(self, tokens: int) -> float:
        """The rate since the last call."""
        now = time.monotonic()
        rate = (tokens - self._tokens) / max(now - self._at, 1e-3)
        self._tokens, self._at = tokens, now
        return round(rate, 1)


def leave(code: int) -> None:
    """End the process at once, with what was logged but without any other clean-up."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
