"""The engine seam: what every engine takes, what it gives back, and what both sides can rely on.

An engine runs sequences in a continuously batched loop. It knows token ids, text and nothing of jobs, Celery
or Redis. One thread owns it and makes every call except `load`, so an engine needs no locks.

What callers can rely on:
- `submit` validates everything; after it returns, the sequence cannot fail for a reason that `submit` could
  have seen.
- Each `step` is at most one forward pass and returns all events of that step, at most one `Event` per
  sequence.
- Token indices of a sequence are dense: an event's `index` is the number of answer tokens before it, counted
  over all attempts (`Request.done` are the first ones). The concatenated `text` of all events, over all
  attempts, is the answer.
- The event that carries `finish` is the sequence's last one, and it also carries the last token.
- A request with a grammar gets an answer that follows it, up to where it was cut; an engine that cannot do that
  refuses it, and says so in `profile.structured`.
- For fixed prompt, sampling and weights in fp32, the answer does not depend on the neighbours in the batch,
  nor on where it was interrupted and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tasks.profile import ModelProfile
from tasks.sampling import Sampling

__all__ = [
    "Engine",
    "EngineDead",
    "Event",
    "Finish",
    "InvalidRequest",
    "Load",
    "ModelProfile",
    "Request",
    "TokenLogprob",
]

Finish = Literal["stop", "length", "cancelled", "error"]


class InvalidRequest(ValueError):
    """The engine refuses a request in `submit`; `code` is one of the values of `tasks.errors.ErrorCode`."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code


class EngineDead(RuntimeError):
    """The device or the engine cannot be used any more: the process must exit so that its jobs go on
    elsewhere.
    """


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to run: one choice of one job.

    `rid` is unique among the live sequences. `done` are the answer tokens that earlier attempts emitted,
    `emitted` the number of characters of their text that was sent; the engine replays `done` through its
    detokeniser and stop strings, and sends only what follows. `choice` goes into the random draws, so that
    the choices of a job differ.
    """

    rid: str
    prompt: Sequence[int]
    sampling: Sampling
    choice: int = 0
    done: Sequence[int] = ()
    emitted: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log probability, as OpenAI's `logprobs.content` wants it; `top` is best first, without
    `top`s of its own.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What one step made of one sequence: `tokens` from answer index `index` on, and the text that became
    final.

    `text` may be empty while characters are incomplete or a stop string may be starting. `error` is set
    exactly when `finish` is "error", with `code` one of the values of `tasks.errors.ErrorCode`.
    """

    rid: str
    index: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: Finish | None = None
    error: str | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot for heartbeats and metrics; `kv_used` is the used share of the KV cache, 0 to 1."""

    running: int
    waiting: int
    kv_used: float
    steps: int
    tokens: int


class Engine(Protocol):
    """One loaded model with its running batch. Built by `workers.engine.registry.build`."""

    profile: ModelProfile
    max_num_seqs: int

    def submit(self, request: Request) -> None:
        """Queue a sequence. Raises `InvalidRequest`; accepts a request whose `done` already ends the answer,
        and finishes it.
        """

    def cancel(self, rid: str) -> None:
        """Stop a sequence; it emits a last event with finish "cancelled" in the next step. Unknown ids are
        ignored.
        """

    def step(self) -> list[Event]:
        """Run one step and return its events; returns [] at once when nothing runs. May raise: then call
        `recover`.
        """

    def recover(self) -> None:
        """After an exception in `step`: reset the device state and re-queue every live sequence. Raises
        `EngineDead`.
        """

    def has_work(self) -> bool:
        """True while a sequence is waiting, running or has an event to deliver."""

    def load(self) -> Load:
        """A snapshot; safe from any thread."""

    def close(self) -> None:
        """Free the model; idempotent."""
