"""A reader as the relay must behave, against the store alone: live entries, gaps, lost history."""

from __future__ import annotations

from typing import Any

from tasks.events import START, EntryId
from tests.integration.protocol_rig import Heard, Rig


class Reader:
    """One client of one job in one API process. `over` is empty while it reads, then says why it ended."""

    def __init__(self, rig: Rig, job: str, api: str) -> None:
        self._rig = rig
        self.job, self.api = job, api
        self.seen: list[tuple[EntryId, dict[str, Any]]] = []
        self.over = ""

    @property
    def last(self) -> EntryId:
        """The last entry that the client got."""
        return self.seen[-1][0] if self.seen else START

    def resume(self, other: Reader) -> Reader:
        """Go on where another one stood, as with Last-Event-ID."""
        self.seen = list(other.seen)
        self.over = "end" if other.over == "end" else ""
        return self

    def poll(self) -> None:
        """What it does first, and whenever it heard nothing for a while: watch, read the record and the log."""
        if self.over:
            return
        attached = self._rig.wait(self._rig.store.attach(self.job, self.api))
        if attached is None:
            self.over = "job lost"
            return
        log = self._rig.log(self.job)
        if self.seen and self.last not in [name for name, _ in log]:
            if attached.state.terminal or attached.last.seq >= self.last.seq:
                self.over = "history lost"
            return  # else its owner may still send it again
        for name, entry in log:
            if name > self.last:
                self._emit(name, entry)

    def hear(self, heard: Heard) -> None:
        """A live entry."""
        if self.over or heard.id <= self.last:
            return
        if heard.id.fence == self.last.fence and heard.id.seq == self.last.seq + 1:
            self._emit(heard.id, heard.entry)
        else:
            self.poll()

    def check(self) -> None:
        """What the client got is a prefix of the log, as long as the log still has its last entry."""
        assert [name.seq for name, _ in self.seen] == list(range(1, len(self.seen) + 1))
        log = self._rig.log(self.job)
        if self.last in [name for name, _ in log]:
            assert self.seen == log[: len(self.seen)]

    def _emit(self, name: EntryId, entry: dict[str, Any]) -> None:
        self.seen.append((name, entry))
        if entry["k"] == "end":
            self.over = "end"
