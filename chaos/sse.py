"""Reads server-sent events from bytes, and turns them into what a client saw. Written against the standard, not against
the service: none of its code is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from chaos.record import Logprob, Seen, Shape, logprobs_of, place_of


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` is None when the event had no id of its own."""

    id: str | None
    name: str
    data: str


class Parser:
    """Bytes in, events out; a line or a character may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._id: str | None = None
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := self._line(line.rstrip(b"\r").decode()))]

    def _line(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._name = value
        return None  # a comment, `retry`, or something that we do not know

    def _dispatch(self) -> Event | None:
        event = Event(self._id, self._name, "\n".join(self._data)) if self._data else None
        self._id, self._name, self._data = None, "", []
        return event


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream said that it is over: done, rewind, or an error with its code."""

    how: str
    code: str = ""


@dataclass(slots=True)
class Assembler:
    """Events to entries. The last event of an entry has its id: what came before it counts only from then on."""

    shape: Shape
    _pending: list[dict[str, Any]] = field(default_factory=list)

    def take(self, event: Event, at: float) -> Seen | Stop | None:
        """What this event completes."""
        if event.data == "[DONE]":
            # Whatever the service says has an id, at the latest with the last event of its entry: half an entry is wrong.
            return Stop("error", "malformed") if self._pending else Stop("done")
        if event.name == "rewind":
            return Stop("rewind")
        try:
            data = json.loads(event.data)
            if event.id is None and "error" in data and not data.get("state"):
                return Stop("error", str(data["error"].get("code")))
            if event.id is None and self.shape == "events":
                raise ValueError("every job event is an entry of its own")
            if event.id is None:
                self._pending.append(data)
                return None
            rows, self._pending = [*self._pending, data], []
            if self.shape == "events":
                return _of_event(event.name, data, event.id, at)
            return _of_chunks(rows, event.id, at)
        except (ValueError, KeyError, TypeError, AttributeError):
            return Stop("error", "malformed")


def _of_event(name: str, data: dict[str, Any], event_id: str, at: float) -> Seen:
    place = place_of(event_id)
    if name == "delta":
        texts = ((data["choice"], data["text"]),)
        logprobs = _logprobs(data["logprobs"]) if "logprobs" in data else None
        return Seen(place, at, "delta", texts, (), data["index"], data["tokens"], logprobs)
    if name == "choice_end":
        return Seen(place, at, "finish", (), ((data["choice"], data["finish_reason"]),))
    if name == "end":
        finishes = ((data["choice"], data["finish_reason"]),) if data["finish_reason"] else ()
        code = (data["error"] or {}).get("code")
        return Seen(place, at, "end", (), finishes, state=data["state"], code=code, usage=_usage(data["usage"]))
    if name == "started":
        return Seen(place, at, "started", index=data["tokens"])
    raise ValueError(f"an event of an unknown kind: {name}")


def _of_chunks(rows: list[dict[str, Any]], event_id: str, at: float) -> Seen:
    place = place_of(event_id)
    for row in rows:
        if "error" in row:
            code = str(row["error"].get("code"))
            return Seen(place, at, "end", state="cancelled" if code == "cancelled" else "failed", code=code)
    choices = [choice for row in rows for choice in row["choices"]]
    texts = tuple((choice["index"], _text(choice)) for choice in choices if _text(choice))
    finishes = tuple((choice["index"], choice["finish_reason"]) for choice in choices if choice["finish_reason"])
    shown = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    logprobs = tuple(one for each in shown for one in logprobs_of(each)) if shown else None
    usages = [_usage(row["usage"]) for row in rows if row.get("usage")]
    if len(usages) > (1 if finishes else 0):
        raise ValueError("token counts, but no end or another one")
    usage = usages[0] if usages else None
    if finishes:
        return Seen(place, at, "finish", texts, finishes, usage=usage)
    if any(choice.get("delta", {}).get("role") for choice in choices):
        return Seen(place, at, "started")
    return Seen(place, at, "delta", texts, logprobs=logprobs)


def _text(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


def _usage(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


def _logprobs(rows: list[dict[str, Any]]) -> tuple[Logprob, ...]:
    return tuple((row["token"], row["logprob"]) for row in rows)
