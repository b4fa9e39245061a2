"""A made-up job that is right in every respect: its log, its record, and what a client saw. Tests spoil one thing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from chaos.alone import Answered
from chaos.audit import Copy, Finding, Row, audit
from chaos.prompts import Ask
from chaos.record import START, Account, Look, Seen, Segment, Shape, Told
from tasks.sampling import Sampling

URL = "http://127.0.0.1:1"
TEXT = "ab cd"
ANSWER = Answered(TEXT, (10, 11, 12, 13), "stop")
ASK = Ask("fake", "chat", ("hi",), Sampling(10, 1, temperature=0.0), 1, 5, (ANSWER,))


def log() -> list[Row]:
    """Two attempts; the second token has no text yet, the last one is the end token."""
    return [
        ((1, 1), {"k": "started", "attempt": 1, "tokens": 0}),
        ((1, 2), {"k": "delta", "c": 0, "i": 0, "t": [10], "s": "ab"}),
        ((1, 3), {"k": "delta", "c": 0, "i": 1, "t": [11], "s": ""}),
        ((5, 4), {"k": "started", "attempt": 2, "tokens": 2}),
        ((5, 5), {"k": "delta", "c": 0, "i": 2, "t": [12], "s": " cd"}),
        ((5, 6), {"k": "delta", "c": 0, "i": 3, "t": [13], "s": ""}),
        ((5, 7), {"k": "end", "state": "succeeded", "tokens": 4, "c": 0, "f": "stop"}),
    ]


def record() -> dict[str, str]:
    """Its record."""
    return {"state": "succeeded", "seq": "7", "tokens": "4", "attempt": "2", "losses": "1", "fence": "5", "code": ""}


def _seen(row: Row, number: int) -> Seen:
    place, entry = row
    at = float(number)
    if entry["k"] == "delta":
        return Seen(place, at, "delta", ((0, entry["s"]),), (), entry["i"], len(entry["t"]))
    if entry["k"] == "end":
        return Seen(place, at, "end", (), ((0, "stop"),), state="succeeded", usage=(5, 4))
    return Seen(place, at, "started", index=entry["tokens"])


def seen(shape: Shape) -> list[Seen]:
    """All events of the job, as a stream of this shape shows them."""
    everything = [_seen(row, number) for number, row in enumerate(log())]
    if shape == "events":
        return everything
    shown = [one for one in everything if one.place in {(1, 1), (1, 2), (5, 5), (5, 7)}]
    return [
        replace(one, index=None, tokens=0, kind="finish" if one.kind == "end" else one.kind, state=None)
        for one in shown
        if shape == "chat" or one.kind != "started"
    ]


def account(shape: Shape = "events", breaks: tuple[int, ...] = (2,), kind: str = "stream") -> Account:
    """A client that broke off after so many events, and came back."""
    made = Account(kind, ASK, "job_1", began=0.0, over=9.0, outcome="complete", wants_usage=True)
    rest, after = seen(shape), START
    for count in (*breaks, len(rest)):
        made.segments.append(Segment(shape, URL, after, seen=rest[:count], how="left"))
        after = max((one.place for one in rest[:count]), default=after)
        rest = rest[count:]
    made.segments[-1].how = "end"
    made.note_end()
    return made


def polled() -> Account:
    """A client that asked now and then."""
    made = Account("poll", ASK, "job_1", began=0.0, over=9.0, outcome="complete", state="succeeded")
    made.looks = [Look(1.0, "queued", ""), Look(2.0, "running", "ab"), Look(3.0, "succeeded", TEXT)]
    made.told = Told((TEXT,), ("stop",), (5, 4), (None,))
    return made


@dataclass
class Case:
    """A job to spoil."""

    account: Account
    record: dict[str, str]
    log: list[Row]

    def findings(self) -> list[Finding]:
        """What the audit says."""
        return audit(self.account, Copy(self.record, self.log))

    def columns(self) -> set[str]:
        """In which columns."""
        return {finding.column for finding in self.findings()}

    def entry(self, seq: int) -> dict[str, Any]:
        """The entry of this seq."""
        return next(entry for place, entry in self.log if place[1] == seq)

    def insert(self, seq: int, entry: dict[str, Any]) -> None:
        """One more entry at this place, in a log and a record that count it."""
        rows = [*self.log[: seq - 1], (self.log[seq - 2][0], entry), *self.log[seq - 1 :]]
        self.log[:] = [((place[0], number), each) for number, (place, each) in enumerate(rows, 1)]
        self.record["seq"] = str(len(rows))

    def cancel(self) -> None:
        """It ended in mid-sentence instead, and its client was told so."""
        self.log[5:] = [((5, 6), {"k": "end", "state": "cancelled", "tokens": 3, "code": "cancelled"})]
        self.record.update(state="cancelled", seq="6", tokens="3", code="cancelled")
        events = self.account.segments[-1].seen
        events[-2:] = [replace(events[-1], place=(5, 6), state="cancelled", finishes=(), usage=(5, 3))]
        self.account.note_end()

    def spoil(self, segment: int, number: int, **changes: Any) -> None:
        """Change one event that the client saw."""
        events = self.account.segments[segment].seen
        events[number] = replace(events[number], **changes)


def case(made: Account | None = None) -> Case:
    """A right one."""
    return Case(account() if made is None else made, record(), copy.deepcopy(log()))
