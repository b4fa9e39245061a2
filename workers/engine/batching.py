"""The engine contract, once: ids, events, cancelling, endings and recovery around a backend that runs the
forwards.

A backend schedules the sequences it is given, runs one forward at a time and chooses tokens. Everything that
callers rely on beyond that is here, so that engines cannot differ in it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tokenizers import Tokenizer

from workers.engine.base import Event, InvalidRequest, Load, ModelProfile, Request, TokenLogprob
from workers.engine.recovery import Recovery
from workers.engine.sequence import LiveSequence
from workers.engine.validation import validate

if TYPE_CHECKING:  # an engine without a model or without grammars does not need torch, numpy and llguidance
    from torch import Tensor

    from workers.engine.constraint import Constraint, Grammars
    from workers.engine.sampler import Choice


class Made(NamedTuple):
    """A token that a forward made for a sequence."""

    rid: str
    token: int
    logprob: TokenLogprob | None = None


class Chooses(Protocol):
    """What chooses the next tokens: the sampler."""

    def choose(self, logits: Tensor, rows: Sequence[LiveSequence]) -> list[Choice]:
        """One token per row of `logits` [rows, vocabulary], which may be written to."""


class Backend(Protocol):
    """Runs forwards over the sequences it holds. It queues those that do not fit, and never decides when one
    ends.
    """

    def add(self, sequence: LiveSequence) -> None:
        """Take a sequence; `sequence.tokens` may hold answer tokens already."""

    def drop(self, rid: str) -> None:
        """Let a sequence go and free what it holds; unknown ids are ignored."""

    def forward(self) -> list[Made]:
        """At most one forward pass; at most one token per sequence, none while a prompt is being read in."""

    def batch(self) -> Sequence[str]:
        """The sequences of the latest forward, also of one that failed."""

    def reset(self) -> None:
        """Drop every sequence, and be ready again after a failure."""

    def running(self) -> int:
        """How many sequences have a place in the batch."""

    def kv_used(self) -> float:
        """The used share of the KV cache, 0 to 1."""

    def close(self) -> None:
        """Free the model."""


class BatchingEngine:
    """An engine made of a backend; see `workers.engine.base.Engine` for the contract."""

    def __init__(
        self,
        backend: Backend,
        profile: ModelProfile,
        tokenizer: Tokenizer,
        eos: Collection[int],
        max_num_seqs: int,
        grammars: Grammars | None = None,
    ) -> None:
        self.profile = profile
        self.max_num_seqs = max_num_seqs
        self._backend = backend
        self._tokenizer = tokenizer
        self._eos = frozenset(eos)
        self._grammars = grammars
        self._live: dict[str, LiveSequence] = {}
        self._parked: list[str] = []  # live, but not with the backend: new ones, and all but one while suspects run
        self._ready: list[Event] = []  # events of sequences that ended without a step
        self._recovery = Recovery()
        self._running = self._steps = self._tokens = 0
        self._kv_used = 0.0

    def submit(self, request: Request) -> None:
        if request.rid in self._live:
            raise InvalidRequest(f"a sequence with id {request.rid!r} is live already")
        validate(request, self.profile)
        sequence = LiveSequence(request, self._tokenizer, self._eos, self._constraint(request))
        if sequence.finish is not None:
            self._ready.append(sequence.end(sequence.finish, *sequence.fault()))
            return
        self._live[request.rid] = sequence
        self._parked.append(request.rid)

    def cancel(self, rid: str) -> None:
        sequence = self._live.get(rid)
        if sequence is not None:
            self._ready.append(sequence.end("cancelled"))
            self._forget(rid)

    def step(self) -> list[Event]:
        if self._ready:  # before the forward, which may fail again and again: an end must not wait for it
            events, self._ready = self._ready, []
            return events
        return self._forward() if self._live else []

    def recover(self) -> None:
        culprit = self._recovery.next(self._live)
        self._backend.reset()
        self._kv_used = self._backend.kv_used()
        self._parked = list(self._live)
        if culprit is not None:
            rid, message, code = culprit
            self._ready.append(self._live[rid].end("error", message, code))
            self._forget(rid)

    def has_work(self) -> bool:
        return bool(self._live or self._ready)

    def load(self) -> Load:
        live = len(self._live)
        running = min(self._running, live)
        return Load(running, live - running, self._kv_used, self._steps, self._tokens)

    def close(self) -> None:
        self._live.clear()
        self._parked.clear()
        self._ready.clear()
        self._backend.close()

    def _constraint(self, request: Request) -> Constraint | None:
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            text = f"this engine cannot bind an answer to a grammar ({grammar.kind})"
            raise InvalidRequest(text, code="unsupported_parameter")
        return self._grammars.constraint(grammar)

    def _forward(self) -> list[Event]:
        self._place()
        try:
            made = self._backend.forward()
        except Exception as error:
            self._recovery.step_failed(error, self._backend.batch() or tuple(self._live))
            raise
        events = [self._advance(*each) for each in made]
        self._recovery.step_done([event.rid for event in events])
        for event in events:
            if event.finish is not None:
                self._forget(event.rid)
        self._steps += 1
        self._tokens += len(made)
        self._running, self._kv_used = self._backend.running(), self._backend.kv_used()
        return events

    def _advance(self, rid: str, token: int, logprob: TokenLogprob | None) -> Event:
        sequence = self._live[rid]
        before = len(sequence.tokens)
        try:
            return sequence.advance(token, logprob)
        except Exception as error:  # in its text or its grammar, which is nobody else's affair
            sequence.finish = "error"
            return Event(rid, before, (), "", None, "error", f"{type(error).__name__}: {error}", "engine_error")

    def _place(self) -> None:
        """Give parked sequences to the backend: all of them, or the one suspect that has to run alone."""
        alone = self._recovery.alone
        if alone is None:
            for rid in self._parked:
                self._backend.add(self._live[rid])
            self._parked.clear()
        elif alone in self._parked:
            for rid in self._live.keys() - {alone, *self._parked}:
                self._backend.drop(rid)
            self._parked = [rid for rid in self._live if rid != alone]
            self._backend.add(self._live[alone])

    def _forget(self, rid: str) -> None:
        if self._live.pop(rid, None) is None:
            return
        self._recovery.forget(rid)
        if rid in self._parked:
            self._parked.remove(rid)
        else:
            self._backend.drop(rid)
            self._kv_used = self._backend.kv_used()  # without a next step nobody else would look
