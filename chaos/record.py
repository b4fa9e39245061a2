"""What the clients saw, kept by themselves: per job what was promised, every event as it came, every error shown.

Nothing in here comes from the store. An id means nothing to this record but an order: (fence, seq).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from chaos.prompts import Ask

Place = tuple[int, int]
Shape = Literal["chat", "completion", "events"]
Logprob = tuple[str, float]

START: Place = (0, 0)
#: How a job can have ended, as clients know it: nothing in here or in the audit comes from the store's own code.
TERMINAL = ("succeeded", "failed", "cancelled")
#: Honest answers of a service whose Redis has lost its last writes.
LOSS = {"job_lost", "history_lost", "rewind", "job_not_found", "unknown_event_id", "events_expired", "job_not_finished"}
UNANSWERED = ("cut", "silent", "store_unavailable", "server_shutdown")


def place_of(text: str) -> Place:
    """The place that an event id names. Raises ValueError."""
    fence, _, seq = text.partition("-")
    return int(fence), int(seq)


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry, as a client got it. `kind`: started, delta, finish (of a choice), end.

    Plain chunks do not tell the end of the last choice from the end of the job: both are `finish`. `index` and `tokens`
    are known from job events only.
    """

    place: Place
    at: float
    kind: str
    texts: tuple[tuple[int, str], ...] = ()
    finishes: tuple[tuple[int, str], ...] = ()
    index: int | None = None
    tokens: int = 0
    logprobs: tuple[Logprob, ...] | None = None
    state: str | None = None
    code: str | None = None
    usage: tuple[int, int] | None = None


@dataclass(slots=True)
class Segment:
    """One connection. `how` it ended: end, left, cut, eof, error, rewind, silent; "" while it is open."""

    shape: Shape
    url: str
    after: Place
    paced: bool = False
    seen: list[Seen] = field(default_factory=list)
    how: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """An error that a client was shown. `where`: submit, resume, stream, poll, cancel, answer. `slow`: by a reader that
    may have got to it long after it was sent."""

    where: str
    code: str
    at: float
    url: str
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """One answer of GET /v1/jobs/{id}."""

    at: float
    state: str
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """The whole answer of a job, as its client was told at the end."""

    texts: tuple[str, ...]
    finishes: tuple[str, ...]
    usage: tuple[int, int]
    logprobs: tuple[tuple[Logprob, ...] | None, ...]  # of each choice


@dataclass(slots=True, eq=False)
class Account:
    """One job in the eyes of its client. `outcome`: complete, left (on purpose), gave up, refused (never accepted)."""

    kind: str
    ask: Ask
    job: str = ""
    began: float = field(default_factory=time.monotonic)
    over: float = 0.0
    outcome: str = ""
    segments: list[Segment] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    told: Told | None = None
    state: str | None = None
    code: str | None = None
    cancelled_at: tuple[str, int, int] | None = None  # state, attempts and tokens, as the accepted cancel answered
    cancelled_when: float = 0.0  # when the accepted cancel was answered
    other_ids: list[str] = field(default_factory=list)  # a second id for the same idempotency key
    keyed: bool = False  # every submit had the same idempotency key
    wants_usage: bool = False  # the stream was asked for its token counts

    def accept(self, job: str) -> None:
        """The service promised this job."""
        if self.job and job not in (self.job, *self.other_ids):
            self.other_ids.append(job)
        self.job = self.job or job

    def open(self, shape: Shape, url: str, after: Place, paced: bool) -> Segment:
        """A connection that was answered with a stream."""
        segment = Segment(shape, url, after, paced)
        self.segments.append(segment)
        return segment

    def show(self, where: str, code: str, url: str, slow: bool = False) -> None:
        """The client was shown an error."""
        self.shown.append(Shown(where, code, time.monotonic(), url, slow))

    def current(self) -> list[Segment]:
        """The connections since the stream last said that it starts over."""
        rewound = [number for number, segment in enumerate(self.segments) if segment.how == "rewind"]
        return self.segments[rewound[-1] + 1 :] if rewound else self.segments

    def seen(self) -> Iterator[Seen]:
        """Every event since then, in order of arrival."""
        for segment in self.current():
            yield from segment.seen

    @property
    def last(self) -> Place:
        """Where the client goes on."""
        return max((one.place for one in self.seen()), default=START)

    @property
    def unanswered(self) -> int:
        """Submits that may have made a job that nobody knows: an answer that never came, or a store that was silent.

        With a key the last answer names the one job that all of them made, if there was an answer.
        """
        if self.keyed and self.outcome != "refused":
            return 0
        return sum(shown.where == "submit" and shown.code in UNANSWERED for shown in self.shown)

    @property
    def told_of_loss(self) -> bool:
        """The client heard that Redis had lost something."""
        return any(shown.code in LOSS for shown in self.shown)

    @property
    def reads(self) -> bool:
        """Whether this client ever read a stream."""
        return bool(self.segments)

    def note_end(self) -> None:
        """Take the state from the last event; `finish` as the last one means success."""
        last = max(self.seen(), key=lambda one: one.place, default=None)
        if last is not None and last.kind == "end":
            self.state, self.code = last.state, last.code
        elif last is not None and last.kind == "finish":
            self.state = "succeeded"

    def texts(self) -> list[str]:
        """The text of each choice, as the events add up."""
        parts: list[list[str]] = [[] for _ in self.ask.answers]
        for one in self.seen():
            for choice, text in one.texts:
                parts[choice].append(text)
        return ["".join(each) for each in parts]

    def forget(self) -> None:
        """Let go of the events, once they were audited: a run has millions."""
        for segment in self.segments:
            segment.seen = []
        self.looks = []


def logprobs_of(shown: dict[str, Any]) -> tuple[Logprob, ...]:
    """The log probabilities of a choice, in the form of either route."""
    if "content" in shown:
        return tuple((row["token"], row["logprob"]) for row in shown["content"])
    return tuple(zip(shown["tokens"], shown["token_logprobs"], strict=True))


def told_of(body: dict[str, Any]) -> Told:
    """The answer inside a chat.completion or text_completion object."""
    rows = body["choices"]
    texts = tuple(row["message"]["content"] if "message" in row else row["text"] for row in rows)
    usage = body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]
    logprobs = tuple(logprobs_of(row["logprobs"]) if row["logprobs"] else None for row in rows)
    return Told(texts, tuple(row["finish_reason"] for row in rows), usage, logprobs)
