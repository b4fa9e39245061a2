"""The entries that one attempt adds to its job's log, and how many of them the log is known to have.

All are kept until the attempt is over: a log that lost its last writes asks for them again. Safe from any thread.
"""

from __future__ import annotations

import threading

from tasks.events import Delta, End, Entry, encode
from tasks.ledger import Write


class Outbox:
    """Entries with dense seqs after `seq`, the last one that was in the log when the attempt began."""

    def __init__(self, job: str, fence: int, seq: int) -> None:
        self._job = job
        self._fence = fence
        self._base = seq
        self._logged = seq  # the log has everything up to here
        self._entries: list[tuple[str, int]] = []
        self._end: End | None = None
        self._first_token: int | None = None
        self._lock = threading.Lock()

    @property
    def logged(self) -> int:
        """The seq up to which the log is known to be complete."""
        return self._logged

    @property
    def progressed(self) -> bool:
        """True once the log has a new token of this attempt."""
        return self._first_token is not None and self._logged >= self._first_token

    def unsent(self) -> int:
        """How many entries the log is not known to have."""
        with self._lock:
            return self._base + len(self._entries) - self._logged

    def append(self, entry: Entry) -> None:
        """Give the entry the next seq. After an `End` nothing may follow."""
        tokens = len(entry.tokens) if isinstance(entry, Delta) else 0
        line = (encode(entry), tokens)
        with self._lock:
            assert self._end is None, "an entry after the terminal one"
            self._entries.append(line)
            if tokens and self._first_token is None:
                self._first_token = self._base + len(self._entries)
            if isinstance(entry, End):
                self._end = entry

    def write(self, limit: int) -> Write | None:
        """What to send next, at most `limit` entries; None if the log has all."""
        with self._lock:
            at = self._logged - self._base
            entries = self._entries[at : at + limit]
            if not entries:
                return None
            first = self._logged + 1
            if self._end is None or at + len(entries) < len(self._entries):
                return Write(self._job, self._fence, first, entries)
            end = self._end
            return Write(self._job, self._fence, first, entries, end.state, end.code or "", end.message or "")

    def confirm(self, write: Write) -> None:
        """The log has everything up to the end of `write`."""
        with self._lock:
            self._logged = max(self._logged, write.first + len(write.entries) - 1)

    def rewind(self, seq: int) -> bool:
        """The log has lost what follows `seq`. False: it lost more than this attempt has."""
        with self._lock:
            if seq < self._base:
                return False
            self._logged = min(self._logged, seq)
            return True
