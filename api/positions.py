"""Where a client wants to take up a stream again: Last-Event-ID, else starting_after, else the beginning."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.errors import ErrorCode, Refused
from tasks.events import START, EntryId


@dataclass(frozen=True, slots=True)
class Position:
    """The last entry that a client says it has, and the parameter that says so."""

    after: EntryId = START
    name: str = "Last-Event-ID"


def position_of(last_event_id: str | None, starting_after: str | None) -> Position:
    """The header wins: a browser that reconnects repeats the query as it was. Raises `Refused` for a malformed one."""
    for name, text in (("Last-Event-ID", last_event_id), ("starting_after", starting_after)):
        if text is None:
            continue
        try:
            after = EntryId.parse(text)
        except ValueError as error:
            raise Refused(f"{name}: {error}", param=name, code=ErrorCode.INVALID_EVENT_ID) from None
        if after.fence == 0 or after.seq == 0:
            text = f"{name}: the event id {after} was never given out; leave it away to begin at the beginning"
            raise Refused(text, param=name, code=ErrorCode.UNKNOWN_EVENT_ID)
        return Position(after, name)
    return Position()
