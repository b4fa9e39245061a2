"""Reads the calls of tools out of the text of an answer, piece by piece, as it comes.

A pure function of the text so far, however it was cut: a stream that is taken up again reads its beginning again, and
then says what the first one would have said.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from api.dialects import Dialect
from tasks.base62 import base62


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """The next piece of the arguments of a call."""

    index: int
    text: str


Piece = Said | Called | Argued


def call_id(job: str, choice: int, index: int) -> str:
    """The id of a call: the same for everyone who reads the answer."""
    number = int.from_bytes(blake2b(f"{job}:{choice}:{index}".encode(), digest_size=18).digest(), "big")
    return "call_" + base62(number, 24)


class CallReader:
    """One choice. `count` is the number of calls so far."""

    def __init__(self, dialect: Dialect) -> None:
        self.count = 0
        self._dialect = dialect
        # name first, as every chat template asks for it; what comes otherwise is read when it is complete
        self._head = re.compile(
            r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"' + re.escape(dialect.arguments) + r'"\s*:\s*(?=\{)'
        )
        self._state: Literal["outside", "inside", "arguments", "after"] = "outside"
        self._text = ""  # not yet given out
        self._said = False
        self._scan = _Scan()

    def push(self, text: str) -> list[Piece]:
        """What the next piece of text adds; what may yet become a call is held back."""
        self._text += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        pieces: list[Piece] = []
        if self._state == "inside" and not self._whole(self._text, pieces):
            pieces.append(Said(self._dialect.begin + self._text))
        elif self._state == "outside" and (self._text.strip() or not self.count):
            pieces.append(Said(self._text))
        self._text = ""
        return [piece for piece in pieces if piece != Said("")]

    def _step(self, pieces: list[Piece]) -> bool:
        """Go on by one state, if the text allows."""
        match self._state:
            case "outside":
                return self._outside(pieces)
            case "inside":
                return self._inside(pieces)
            case "arguments":
                return self._arguments(pieces)
            case "after":
                return self._after(pieces)

    def _outside(self, pieces: list[Piece]) -> bool:
        begin = self._dialect.begin
        if not begin:
            return self._bare(pieces)
        at = self._text.find(begin)
        if at >= 0:
            self._say(self._text[:at].rstrip() if self._text[:at].strip() else "", pieces)
            self._text, self._state = self._text[at + len(begin) :], "inside"
            return True
        kept = _undecided(self._text, begin)
        self._say(self._text[: len(self._text) - kept], pieces)
        self._text = self._text[len(self._text) - kept :]
        return False

    def _bare(self, pieces: list[Piece]) -> bool:
        """Without marks: an object at the beginning of the answer, or after another call, is a call."""
        text = self._text.lstrip(" ;\n\t") if self.count else self._text.lstrip()
        if not self._said and text.startswith("{"):
            self._text, self._state = text, "inside"
            return True
        if text:
            self._say(self._text, pieces)
            self._text = ""
        return False

    def _inside(self, pieces: list[Piece]) -> bool:
        head = self._head.match(self._text)
        if head is not None:
            pieces.append(Called(self.count, json.loads(head[1], strict=False)))
            self._text, self._state, self._scan = self._text[head.end() :], "arguments", _Scan()
            return True
        end = self._dialect.end
        if not end or end not in self._text:
            return False
        inner, self._text = self._text.split(end, 1)
        self._state = "outside"
        if not self._whole(inner, pieces):
            self._say(self._dialect.begin + inner + end, pieces)
        return True

    def _arguments(self, pieces: list[Piece]) -> bool:
        taken = self._scan.take(self._text)
        if taken:
            pieces.append(Argued(self.count, self._text[:taken]))
        self._text = self._text[taken:]
        if not self._scan.over:
            return False
        self.count += 1
        self._state = "after"
        return True

    def _after(self, pieces: list[Piece]) -> bool:
        """The rest of the object, and the end mark: nothing that anybody needs."""
        mark = self._dialect.end or "}"
        at = self._text.find(mark)
        if at < 0:
            return False
        self._text, self._state = self._text[at + len(mark) :], "outside"
        return True

    def _whole(self, text: str, pieces: list[Piece]) -> bool:
        """A complete call in whatever order; False if it is none."""
        try:
            call: Any = json.loads(text)
            name, arguments = call["name"], call[self._dialect.arguments]
        except (ValueError, TypeError, KeyError):
            return False
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return False
        pieces += [Called(self.count, name), Argued(self.count, json.dumps(arguments, ensure_ascii=False))]
        self.count += 1
        return True

    def _say(self, text: str, pieces: list[Piece]) -> None:
        """White space around calls is not worth saying."""
        if text and (self._said or text.strip() or not self.count):
            self._said = True
            pieces.append(Said(text))


def read_calls(dialect: Dialect, job: str, choice: int, text: str) -> tuple[str, list[dict[str, Any]]]:
    """A whole answer: what it says, and its calls as OpenAI shows them."""
    reader = CallReader(dialect)
    said, calls = "", []
    for piece in [*reader.push(text), *reader.finish()]:
        match piece:
            case Said():
                said += piece.text
            case Called():
                calls.append(call_object(job, choice, piece))
            case Argued():
                calls[piece.index]["function"]["arguments"] += piece.text
    return said, calls


def call_object(job: str, choice: int, call: Called) -> dict[str, Any]:
    """A call of which the arguments are yet to come."""
    function = {"name": call.name, "arguments": ""}
    return {"id": call_id(job, choice, call.index), "type": "function", "function": function}


@dataclass(slots=True)
class _Scan:
    """Finds the end of a JSON object in text that comes in pieces."""

    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    over: bool = False

    def take(self, text: str) -> int:
        """How much of the text belongs to the object."""
        for at, char in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.quoted:
                self.escaped, self.quoted = char == "\\", char != '"'
            elif char == '"':
                self.quoted = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth == 0:
                    self.over = True
                    return at + 1
        return len(text)


def _undecided(text: str, mark: str) -> int:
    """The length of the end of the text that may belong to a mark: the start of one, and white space before it."""
    size = next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
    before = text[: len(text) - size]
    return size + len(before) - len(before.rstrip())
