"""The body of the task: what one lane does with one ticket.

Claim a job, read its log, hand it to the engine, wait until it is no longer ours. The lane does nothing per token. If
the process dies anywhere in here the lease lapses and the job goes on elsewhere; a ticket that is lost on the way is
replaced by the next reaping.
"""

from __future__ import annotations

import logging

from tasks.errors import StoreDown
from tasks.events import Entry, EntryId
from tasks.ledger import Claim, JobLedger
from workers.admission import Admission
from workers.attempt import Attempt
from workers.lease import LeaseKeeper
from workers.loop import EngineLoop

log = logging.getLogger(__name__)

RETRY_S = 0.5


class Lanes:
    """What lanes share. `serve` is safe from any number of threads."""

    def __init__(
        self, ledger: JobLedger, admission: Admission, keeper: LeaseKeeper, loop: EngineLoop, model: str, worker: str
    ) -> None:
        self._ledger = ledger
        self._admission = admission
        self._keeper = keeper
        self._loop = loop
        self._model = model
        self._worker = worker

    def serve(self) -> str:
        """Serve one ticket. Returns what became of it."""
        if not self._admission.enter():
            return "draining"
        admitted: Attempt | None = None
        try:
            claim = self._ledger.claim(self._model, self._worker, aged=self._admission.aged)
            if not isinstance(claim, Claim):
                return "no job" if claim is None else "draining"
            admitted = Attempt(claim)
            self._admission.admit(admitted)
            return self._run(admitted)
        except StoreDown as error:
            log.warning("a ticket came to nothing: %s", error)
            return "store down"
        finally:
            self._admission.leave(admitted)

    def _run(self, attempt: Attempt) -> str:
        if not self._keeper.hold(attempt):
            self._ledger.release(attempt.job, attempt.fence)
            return "released"
        try:
            log.info("job %s: attempt %d begins", attempt.job, attempt.number)
            attempt.restore(self._read(attempt))
            self._loop.submit(attempt)
            attempt.wait()
        finally:
            self._keeper.drop(attempt)  # whatever happened: a lane that is gone must not keep a lease
        log.info("job %s: attempt %d over: %s", attempt.job, attempt.number, attempt.outcome)
        return attempt.outcome

    def _read(self, attempt: Attempt) -> list[tuple[EntryId, Entry]]:
        """The job's log. An outage is no reason to let go: the lease says whether the job is still ours."""
        if attempt.outbox.logged == 1:  # the entry that the claim wrote
            return []
        while True:
            try:
                return self._ledger.read_all(attempt.job)
            except StoreDown as error:
                if attempt.wait(RETRY_S):
                    return []
                log.warning("job %s: its log cannot be read, trying again: %s", attempt.job, error)
