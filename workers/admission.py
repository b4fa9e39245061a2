"""How many sequences this worker has taken. A lane asks here before it claims a job.

A job of n choices holds one lane but n places of the engine, so lanes can be free while places are not. A lane then
waits before it claims: the job stays in line, where another worker may take it. While a suspect runs alone, nobody
claims: what was claimed beside it would wait for it, and share the blame if it kills the process. Lanes claim one after
the other, since only a claim tells how many places a job needs and whether it is a suspect. So one lane is woken at a
time, and wakes the next when it has claimed: a burst that woke all for each claim would cost the square of its size.
"""

from __future__ import annotations

import threading

from workers.attempt import Attempt


class Admission:
    """Places of one engine; safe from any thread. Every `enter` that returned True is followed by one `leave`."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._firm = 0  # jobs that do not yield
        self._claiming = False
        self._suspect: Attempt | None = None
        self._closed = False
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Wait until the worker has room for a job, and for the turn to claim it. False: the worker drains."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._open())
            self._claiming = not self._closed
            return self._claiming

    def admit(self, attempt: Attempt) -> None:
        """The claim gave this job: it takes its places, and the next lane may claim."""
        with self._changed:
            self._claiming = False
            self._taken += attempt.spec.choices
            self._firm += attempt.firm
            if attempt.suspect:
                self._suspect = attempt
            self._changed.notify()

    def leave(self, attempt: Attempt | None) -> None:
        """Give back the places of an admitted attempt; None: the claim gave no job."""
        with self._changed:
            if attempt is None:
                self._claiming = False
            else:
                self._taken -= attempt.spec.choices
                self._firm -= attempt.firm
            if attempt is self._suspect:
                self._suspect = None
            self._changed.notify()

    @property
    def lacking(self) -> int:
        """How many places more one more job would need; 0 if there is one."""
        return max(0, self._taken - self._places + 1)

    @property
    def aged(self) -> bool:
        """True while another job may be let in for its age: they have one place of ten, and one at least."""
        return self._firm < max(1, self._places // 10)

    def wake(self) -> None:
        """Look again: a suspect has proved itself."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _open(self) -> bool:
        alone = self._suspect is not None and self._suspect.suspect
        return self._taken < self._places and not alone and not self._claiming
