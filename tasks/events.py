"""The entries of a job's log, and their ids.

A log is a Redis stream whose entry ids are `<fence>-<seq>`: the fence is raised at every change of owner, seq counts
the job's entries from 1 without gaps over all attempts. Each entry is one JSON object, stored and published as the
same bytes:

    started     {"k": "started", "attempt", "tokens"}                 a worker took the job; tokens: those logged before
    delta       {"k": "delta", "c", "i", "t", "s", "l"?}              choice, first token index, token ids, text, logprobs
    choice_end  {"k": "choice_end", "c", "f"}                         a choice is complete while others still run
    end         {"k": "end", "state", "tokens", "c"?, "f"?, "code"?, "message"?}    the terminal entry, always the last

`end` carries the finish reason of the choice that ended last; for one choice it is the only place of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

_ID = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")


class EntryId(NamedTuple):
    """A position in a log; compares as a pair of integers. (0, 0) is before everything."""

    fence: int
    seq: int

    def __str__(self) -> str:
        return f"{self.fence}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EntryId:
        """Raises ValueError unless `text` is two decimal numbers below 2**63 joined by a hyphen."""
        match = _ID.fullmatch(text)
        if not match or max(int(match[1]), int(match[2])) >= 2**63:
            raise ValueError("an event id looks like 12-34")
        return cls(int(match[1]), int(match[2]))


START = EntryId(0, 0)


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt began; `tokens` answer tokens were logged before it."""

    attempt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of one choice from answer index `index` on. `text` may be empty: logged, not sent."""

    choice: int
    index: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """One of several choices is complete."""

    choice: int
    finish: str


@dataclass(frozen=True, slots=True)
class End:
    """The terminal entry. `tokens` counts the answer tokens of the whole log."""

    state: str
    tokens: int
    choice: int | None = None
    finish: str | None = None
    code: str | None = None
    message: str | None = None


Entry = Started | Delta | ChoiceEnd | End

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # `json.dumps` would make a new one a call


def encode(entry: Entry) -> str:
    """The entry as it is logged and published."""
    match entry:
        case Started():
            data: dict[str, Any] = {"k": "started", "attempt": entry.attempt, "tokens": entry.tokens}
        case Delta():
            logprobs = "" if entry.logprobs is None else f',"l":{_JSON.encode(entry.logprobs)}'
            tokens, text = ",".join(map(str, entry.tokens)), _JSON.encode(entry.text)
            # By hand: a step of many jobs has one each, and the engine waits meanwhile.
            return f'{{"k":"delta","c":{entry.choice},"i":{entry.index},"t":[{tokens}],"s":{text}{logprobs}}}'
        case ChoiceEnd():
            data = {"k": "choice_end", "c": entry.choice, "f": entry.finish}
        case End():
            optional = {"c": entry.choice, "f": entry.finish, "code": entry.code, "message": entry.message}
            data = {"k": "end", "state": entry.state, "tokens": entry.tokens}
            data |= {name: value for name, value in optional.items() if value is not None}
    return _JSON.encode(data)


def decode(data: dict[str, Any]) -> Entry:
    """The inverse of `encode`, from parsed JSON. Raises KeyError for a kind that this version does not know."""
    kind = data["k"]
    if kind == "delta":
        logprobs = tuple(data["l"]) if "l" in data else None
        return Delta(data["c"], data["i"], tuple(data["t"]), data["s"], logprobs)
    if kind == "started":
        return Started(data["attempt"], data["tokens"])
    if kind == "choice_end":
        return ChoiceEnd(data["c"], data["f"])
    if kind == "end":
        return End(data["state"], data["tokens"], *(data.get(name) for name in ("c", "f", "code", "message")))
    raise KeyError(kind)
