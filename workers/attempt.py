"""One attempt of one job on this worker: its choices, and the entries that it adds to the job's log.

It turns engine events into entries and knows when the job is complete. It talks to nobody: the engine thread feeds it,
the publisher reads its outbox, a lane waits for its end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import ErrorCode
from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId
from tasks.jobs import JobState
from tasks.ledger import Claim
from workers.engine.base import Event, Request, TokenLogprob
from workers.outbox import Outbox

#: What the record says of a job that was stopped, by the verdict that stopped it.
STOPPED = {
    "cancel": (JobState.CANCELLED, ErrorCode.CANCELLED, None),
    "deadline": (JobState.FAILED, ErrorCode.DEADLINE_EXCEEDED, "the deadline passed while the job ran"),
}


@dataclass(slots=True)
class Choice:
    """One answer of the job: its tokens over all attempts, and how many characters of it were logged."""

    index: int
    tokens: list[int] = field(default_factory=list)
    emitted: int = 0
    finish: str | None = None


class Attempt:
    """A claimed job. Choices belong to the engine thread once the attempt is submitted; the rest is safe anywhere."""

    def __init__(self, claim: Claim) -> None:
        self.spec = claim.spec
        self.fence = claim.fence
        self.number = claim.attempt
        self.choices = [Choice(index) for index in range(claim.spec.choices)]
        self.outbox = Outbox(claim.spec.id, claim.fence, claim.seq)
        self.firm = claim.firm  # let in for its age
        self.suspect = claim.strikes > 0  # runs alone until the log has a new token of it
        self.stopping: str | None = None  # the verdict that stops it
        self.complete = False  # the terminal entry is in the outbox
        self.outcome = ""
        self._tokens = 0
        self._over = threading.Event()

    @property
    def job(self) -> str:
        """The job's id."""
        return self.spec.id

    def restore(self, log: Iterable[tuple[EntryId, Entry]]) -> None:
        """Take up what earlier attempts logged."""
        for _, entry in log:
            match entry:
                case Delta():
                    choice = self.choices[entry.choice]
                    choice.tokens += entry.tokens
                    choice.emitted += len(entry.text)
                    self._tokens += len(entry.tokens)
                case ChoiceEnd():
                    self.choices[entry.choice].finish = entry.finish

    def open_choices(self) -> list[Choice]:
        """Those that still have to run."""
        return [choice for choice in self.choices if choice.finish is None]

    def rid(self, choice: Choice) -> str:
        """The engine's name for a choice. The fence keeps attempts of one job on one worker apart."""
        return f"{self.job}:{self.fence}:{choice.index}"

    def rids(self) -> list[str]:
        """The names of all choices."""
        return [self.rid(choice) for choice in self.choices]

    def requests(self) -> Iterator[tuple[Choice, Request]]:
        """What the engine has to run, from the tokens so far."""
        for choice in self.open_choices():
            prompt = self.spec.prompts[choice.index // self.spec.n]
            tokens = tuple(choice.tokens)
            sampling = self.spec.sampling
            yield choice, Request(self.rid(choice), prompt, sampling, choice.index, tokens, choice.emitted)

    def take(self, choice: Choice, event: Event) -> None:
        """Log what one engine step made of one choice."""
        if self.complete or choice.finish is not None:
            return
        if event.tokens or event.text:
            logprobs = None if event.logprobs is None else tuple(_logprob(one) for one in event.logprobs)
            self.outbox.append(Delta(choice.index, event.index, event.tokens, event.text, logprobs))
            choice.tokens += event.tokens
            choice.emitted += len(event.text)
            self._tokens += len(event.tokens)
        if event.finish == "error":
            self.fail(event.code or ErrorCode.ENGINE_ERROR, event.error or "the engine failed", choice)
        elif event.finish is not None:
            self._finish(choice, event.finish)

    def stop(self) -> None:
        """End a job that was told to stop and that no engine runs."""
        if not self.complete and self.stopping is not None:
            state, code, message = STOPPED[self.stopping]
            self._end(End(state, self._tokens, code=code, message=message))

    def fail(self, code: str, message: str, choice: Choice | None = None) -> None:
        """End the whole job as failed; `choice` is the one that failed."""
        if not self.complete:
            index, finish = (None, None) if choice is None else (choice.index, "error")
            self._end(End(JobState.FAILED, self._tokens, index, finish, code, message))

    def end_if_done(self) -> bool:
        """End a job whose log lacks nothing but the end, and one that asks for nothing."""
        if not self.choices:
            self.fail(ErrorCode.INVALID_REQUEST, "the job has no prompt")
        elif not self.complete and not self.open_choices():
            self._succeed(self.choices[-1])
        return self.complete

    def over(self, outcome: str) -> None:
        """The job is no longer ours: ended, fenced, lost or released. The first outcome counts."""
        if not self._over.is_set():
            self.outcome = outcome
            self._over.set()

    @property
    def is_over(self) -> bool:
        """True once the lane may go."""
        return self._over.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the job is no longer ours."""
        return self._over.wait(timeout_s)

    def _finish(self, choice: Choice, finish: str) -> None:
        choice.finish = finish
        if self.open_choices():
            if finish != "cancelled":
                self.outbox.append(ChoiceEnd(choice.index, finish))
        elif self.stopping is not None and any(one.finish == "cancelled" for one in self.choices):
            self.stop()
        else:
            self._succeed(choice)

    def _succeed(self, last: Choice) -> None:
        self._end(End(JobState.SUCCEEDED, self._tokens, last.index, last.finish))

    def _end(self, end: End) -> None:
        self.complete = True
        self.outbox.append(end)


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    """As OpenAI's `logprobs.content` has it."""
    plain: dict[str, Any] = {"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)}
    top = [{"token": each.token, "logprob": each.logprob, "bytes": list(each.bytes)} for each in one.top]
    return plain | {"top_logprobs": top}
