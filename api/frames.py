"""SSE events as bytes, and what a stream needs of whoever makes them."""

from __future__ import annotations

import json
from typing import Any, Protocol

from tasks.errors import PenstockError
from tasks.events import Entry, EntryId

#: No line breaks to the SSE standard, but to `str.splitlines`, with which many clients read.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


class Frames(Protocol):
    """What `api.sse` needs of a renderer."""

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """The frames of one entry; none for an entry that clients do not see."""

    def error(self, error: PenstockError) -> bytes:
        """The frame that says why the stream ends here."""

    def close(self) -> bytes:
        """What follows the last frame."""


def frame(data: dict[str, Any], at: EntryId | None = None, event: str | None = None) -> bytes:
    """One SSE event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_LINE_BREAKS)
    head = (f"id: {at}\n" if at else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {text}\n\n".encode()


class Wrapped:
    """A renderer around another one."""

    def __init__(self, inside: Frames) -> None:
        self._inside = inside

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """As the renderer inside."""
        return self._inside.frames(at, entry)

    def error(self, error: PenstockError) -> bytes:
        """As the renderer inside."""
        return self._inside.error(error)

    def close(self) -> bytes:
        """As the renderer inside."""
        return self._inside.close()


class Resumed(Wrapped):
    """A renderer that has to read the whole answer, for a client that has its beginning."""

    def __init__(self, inside: Frames, after: EntryId) -> None:
        super().__init__(inside)
        self._after = after

    def frames(self, at: EntryId, entry: Entry) -> bytes:
        """Nothing for entries that the client has."""
        frames = super().frames(at, entry)
        return frames if at > self._after else b""
