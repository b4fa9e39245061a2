"""One live sequence: its tokens so far and its text, turned into events. The part that every engine shares.

It decides when an answer ends (end-of-sequence token, stop string, end of the grammar, max_tokens), the same way for
new tokens as for those of earlier attempts, and it knows nothing of forward passes.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from workers.engine.base import Event, Finish, Request, TokenLogprob
from workers.engine.text import AnswerText

if TYPE_CHECKING:  # llguidance and numpy, which an engine without grammars does not need
    from workers.engine.constraint import Constraint


class Tally:
    """The distinct tokens of a text and how often each occurs; as arrays, for penalties read all of it at every step."""

    def __init__(self) -> None:
        self.tokens = array("q")
        self.counts = array("d")
        self._places: dict[int, int] = {}

    def add(self, tokens: Iterable[int]) -> None:
        """Count these too."""
        for token in tokens:
            place = self._places.setdefault(token, len(self.tokens))
            if place == len(self.tokens):
                self.tokens.append(token)
                self.counts.append(0.0)
            self.counts[place] += 1.0


class LiveSequence:
    """A submitted request. `finish` is None while the answer goes on; `tokens` counts over all attempts.

    `constraint` holds what the grammar allows next, if there is one; where it fails, `finish` is "error".
    """

    def __init__(
        self, request: Request, tokenizer: Tokenizer, eos: Collection[int], constraint: Constraint | None = None
    ) -> None:
        self.request = request
        self.constraint = constraint
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        own = () if request.sampling.ignore_eos else eos
        self._ends = frozenset((*own, *request.sampling.stop_token_ids))
        self._text = AnswerText(tokenizer, request.sampling.stop, request.emitted)
        self._unsent = ""
        self._answer, self._whole = Tally(), Tally()
        self._counted = 0
        for token in request.done:
            if self.finish is None:
                self._unsent += self._add(token)
            else:  # never emitted by us, but indices count them all the same
                self.tokens.append(token)
        self._unsent += self._look_ahead()

    @property
    def rid(self) -> str:
        return self.request.rid

    @property
    def forbidden(self) -> Collection[int]:
        """Tokens that may not come next: those that end the answer, while it is too short."""
        return self._ends if len(self.tokens) < self.request.sampling.min_tokens else ()

    def tallies(self) -> tuple[Tally, Tally]:
        """The tokens of the answer so far, and those of the prompt and the answer. Costs the tokens since the last call."""
        if not self._whole.tokens:
            self._whole.add(self.request.prompt)
        new = self.tokens[self._counted :]
        self._counted = len(self.tokens)
        for tally in (self._answer, self._whole):
            tally.add(new)
        return self._answer, self._whole

    def advance(self, token: int, logprob: TokenLogprob | None = None) -> Event:
        """The event of one new token."""
        index = len(self.tokens)
        text = self._take_unsent() + self._add(token) + self._look_ahead()
        logprobs = None if logprob is None else (logprob,)
        return Event(self.rid, index, (token,), text, logprobs, self.finish, *self.fault())

    def fault(self) -> tuple[str, str] | tuple[None, None]:
        """The message and code of an answer that its grammar ended as an error."""
        if self.finish != "error" or self.constraint is None or self.constraint.error is None:
            return None, None
        return self.constraint.error, "invalid_request"

    def end(self, finish: Finish, error: str | None = None, code: str | None = None) -> Event:
        """The last event of a sequence that ends without a new token; text that was held back is sent with
        it.
        """
        self.finish = finish
        text = self._take_unsent() + self._text.finish()
        return Event(self.rid, len(self.tokens), (), text, None, finish, error, code)

    def _add(self, token: int) -> str:
        self.tokens.append(token)
        ends = token in self._ends
        text = "" if ends else self._text.push(token)  # an end token has no text
        if self.constraint is not None and not ends:
            self.constraint.take(token)
        if ends or self._text.stopped:
            self.finish = "stop"
        elif self.constraint is not None and self.constraint.ended:
            self.finish = "stop" if self.constraint.error is None else "error"
        elif len(self.tokens) >= self.request.sampling.max_tokens:
            self.finish = "length"
        if self.finish is None:
            return text
        text += self._text.finish()
        if self._text.stopped:
            self.finish = "stop"
        return text

    def _look_ahead(self) -> str:
        """What the grammar allows next. Not asked while tokens are replayed: only the last of them has a next one."""
        if self.constraint is None or self.finish is not None:
            return ""
        self.constraint.look(self.forbidden)
        if not self.constraint.ended:
            return ""
        self.finish = "stop" if self.constraint.error is None else "error"
        return self._text.finish()

    def _take_unsent(self) -> str:
        text, self._unsent = self._unsent, ""
        return text
