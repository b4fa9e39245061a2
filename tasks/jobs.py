"""The job: what was asked for, where it stands, and the one table of transitions.

The table is used by the Lua scripts (as a generated table), by Python and by the diagram in the documentation. A
request to cancel is a field, not a state. Terminal states absorb.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final, Literal

from tasks.base62 import BASE62, base62
from tasks.sampling import Sampling


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True for the states that absorb."""
        return not TRANSITIONS[self]


#: from → to, with the reason. Whatever is not here cannot happen.
TRANSITIONS: Final[dict[JobState, dict[JobState, str]]] = {
    JobState.QUEUED: {
        JobState.RUNNING: "claimed by a worker",
        JobState.CANCELLED: "cancelled in line",
        JobState.FAILED: "deadline passed in line",
    },
    JobState.RUNNING: {
        JobState.SUCCEEDED: "every choice finished",
        JobState.FAILED: "engine error, deadline, or poisoned",
        JobState.CANCELLED: "cancelled while running",
        JobState.QUEUED: "lease expired, drained or preempted",
    },
    JobState.SUCCEEDED: {},
    JobState.FAILED: {},
    JobState.CANCELLED: {},
}

Priority = Literal["interactive", "normal", "batch"]
BANDS: Final[dict[Priority, int]] = {"interactive": 0, "normal": 1, "batch": 2}
#: Scores of one band in line: three of them stay exact in a double.
BAND_SPAN: Final = 2**51
#: Tokens of an answer, at most, where none have ended yet.
ASSUMED: Final = 256

#: id prefix by route
PREFIXES: Final = {"chat": "chatcmpl-", "completion": "cmpl-", "job": "job_", "response": "resp_"}
_DIGITS = 24


def new_id(route: str) -> str:
    """A fresh job id for a route: its prefix and 24 base62 characters."""
    return PREFIXES[route] + base62(secrets.randbelow(62**_DIGITS), _DIGITS)


def is_id(text: str) -> bool:
    """True if `text` has the form of a job id."""
    return any(
        text.startswith(p) and len(text) == len(p) + _DIGITS and all(c in BASE62 for c in text[len(p) :])
        for p in PREFIXES.values()
    )


def lua_table() -> str:
    """The transitions as a Lua set `MAY`, and `SPAN`, put before every script."""
    moves = ", ".join(f"['{a}>{b}'] = true" for a, targets in TRANSITIONS.items() for b in targets)
    return f"local MAY = {{{moves}}}\nlocal SPAN = {BAND_SPAN}\n"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What was asked for, rendered and tokenised: never changed after submit.

    `kind` is the shape of the answer (chat or completion), `prompts` the token ids of each prompt; every prompt has `n`
    choices, choice c answers prompt c // n. `store`: the job outlives its clients. `retention_s` runs from its end.
    `deadline_ms` is on Redis' clock, relative to submit; None: no deadline. `tool_format`: how calls of tools stand in
    the answer, a name of `api.dialects`; empty: none are looked for.
    """

    id: str
    kind: Literal["chat", "completion"]
    model: str
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    store: bool = False
    priority: Priority = "normal"
    deadline_ms: int | None = None
    retention_s: int = 600
    tenant: str = "default"
    request_id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    tool_format: str = ""

    @property
    def choices(self) -> int:
        """How many sequences the job runs."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens as usage counts them: each prompt once."""
        return sum(len(prompt) for prompt in self.prompts)

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back. Workers of an older version read it too, so what is new and not
        asked for is left out.
        """
        data = {name: getattr(self, name) for name in _FIELDS}  # not asdict: it copies every token id
        if not self.tool_format:
            del data["tool_format"]
        return _encode({**data, "sampling": self.sampling.to_json()})

    @classmethod
    def from_json(cls, text: str) -> JobSpec:
        """The inverse of `to_json`."""
        data = json.loads(text)
        prompts = tuple(tuple(prompt) for prompt in data.pop("prompts"))
        return cls(**{**data, "prompts": prompts, "sampling": Sampling.from_json(data["sampling"])})


_FIELDS = tuple(each.name for each in fields(JobSpec))
_encode = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` with options makes an encoder for every call


@dataclass(frozen=True, slots=True)
class Job:
    """A job's record as read from Redis; times are milliseconds since the epoch, by Redis' clock.

    `strikes` counts losses in a row without a new token, `losses` all lost leases, `tokens` the answer tokens logged.
    """

    spec: JobSpec
    state: JobState
    fence: int
    attempt: int
    seq: int
    tokens: int
    strikes: int
    losses: int
    cancel: bool
    created: int
    started: int | None
    finished: int | None
    code: str | None
    message: str | None
    worker: str | None

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id

    @classmethod
    def from_hash(cls, data: Mapping[str, str]) -> Job:
        """From HGETALL of the record."""

        def number(name: str) -> int:
            return int(data.get(name) or 0)

        return cls(
            spec=JobSpec.from_json(data["spec"]),
            state=JobState(data["state"]),
            fence=number("fence"),
            attempt=number("attempt"),
            seq=number("seq"),
            tokens=number("tokens"),
            strikes=number("strikes"),
            losses=number("losses"),
            cancel=data.get("cancel") == "1",
            created=number("created"),
            started=number("started") or None,
            finished=number("finished") or None,
            code=data.get("code") or None,
            message=data.get("message") or None,
            worker=data.get("worker") or None,
        )
