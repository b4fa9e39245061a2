"""SSE events as bytes, and what a stream needs of whoever makes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring
from typing import Any, Protocol

from tasks.errors import PenstockError
from tasks.events import Delta, Entry, EntryId

#: What becomes one event at most, in deltas and in characters: a slow client has to take it at once.
JOINED, JOINED_CHARS = 64, 4096

#: No line breaks to the SSE standard, but to `str.splitlines`, with which many clients read.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


#: Stands for the text of a chunk. Nothing else in it can be this string, for a model's name holds no NUL.
_HOLE = "\0"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Frames(Protocol):
    """What `api.sse` needs of a renderer.

    `shape`: renderers of a job with the same one give the same frames for a delta; empty if these depend on what came
    before. `joins`: deltas of one choice may become one event.
    """

    shape: str
    joins: bool

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """The frames of one entry; none for an entry that clients do not see."""

    def error(self, error: PenstockError) -> bytes:
        """The frame that says why the stream ends here."""

    def close(self) -> bytes:
        """What follows the last frame."""


def frame(data: dict[str, Any], at: EntryId | None = None, event: str | None = None) -> bytes:
    """One SSE event."""
    text = _plain(_encode(data))
    head = (f"id: {at}\n" if at else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {text}\n\n".encode()


def _plain(text: str) -> str:
    return text if text.isascii() else text.translate(_LINE_BREAKS)


class TextFrames:
    """Events that differ in their id and one text: everything else is encoded once."""

    def __init__(self, data: Callable[[str], dict[str, Any]]) -> None:
        head, _, tail = _plain(_encode(data(_HOLE))).rpartition(_encode(_HOLE))
        self._head, self._tail = f"\ndata: {head}", f"{tail}\n\n"

    def frame(self, at: EntryId, text: str) -> bytes:
        """`frame(data(text), at)`."""
        return f"id: {at.fence}-{at.seq}{self._head}{_plain(encode_basestring(text))}{self._tail}".encode()


def joined(items: Iterable[tuple[EntryId, Entry]]) -> list[tuple[EntryId, Entry]]:
    """The entries with neighbouring deltas of one choice made one, under the id of the last of them.

    Those with log probabilities stay as they are: they are long enough.
    """
    rows: list[tuple[EntryId, Entry]] = []
    run: list[Delta] = []
    for at, entry in items:
        delta = entry if isinstance(entry, Delta) and entry.logprobs is None else None
        if delta and run and _fits(run, delta):
            rows.pop()
        else:
            _close(rows, run)
        if delta:
            run.append(delta)
        rows.append((at, entry))
    _close(rows, run)
    return rows


def _fits(run: list[Delta], delta: Delta) -> bool:
    chars = sum(len(other.text) for other in run) + len(delta.text)
    return run[0].choice == delta.choice and len(run) < JOINED and chars <= JOINED_CHARS


def _close(rows: list[tuple[EntryId, Entry]], run: list[Delta]) -> None:
    """Put a run of deltas where its last one stands."""
    if len(run) > 1:
        tokens = tuple(token for delta in run for token in delta.tokens)
        rows[-1] = rows[-1][0], Delta(run[0].choice, run[0].index, tokens, "".join(delta.text for delta in run))
    run.clear()


class Resumed:
    """A renderer that has to read the whole answer, for a client that has its beginning."""

    shape = ""
    joins = False

    def __init__(self, inside: Frames, after: EntryId) -> None:
        self._inside = inside
        self._after = after

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """Nothing for entries that the client has."""
        frames = self._inside.frames(at, entry)
        return frames if at > self._after else b""

    def error(self, error: PenstockError) -> bytes:
        """As the renderer inside."""
        return self._inside.error(error)

    def close(self) -> bytes:
        """As the renderer inside."""
        return self._inside.close()
