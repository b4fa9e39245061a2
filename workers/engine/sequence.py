"""One live sequence: its tokens so far and its text, turned into events. The part that every engine shares.

It decides when an answer ends (end-of-sequence token, stop string, max_tokens), the same way for new tokens
as for those of earlier attempts, and it knows nothing of forward passes.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer

from workers.engine.base import Event, Finish, Request, TokenLogprob
from workers.engine.text import AnswerText


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
    """A submitted request. `finish` is None while the answer goes on; `tokens` counts over all attempts."""

    def __init__(self, request: Request, tokenizer: Tokenizer, eos: Collection[int]) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self._eos = eos
        self._text = AnswerText(tokenizer, request.sampling.stop, request.emitted)
        self._unsent = ""
        self._answer, self._whole = Tally(), Tally()
        self._counted = 0
        for token in request.done:
            if self.finish is None:
                self._unsent += self._add(token)
            else:  # never emitted by us, but indices count them all the same
                self.tokens.append(token)

    @property
    def rid(self) -> str:
        return self.request.rid

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
        text = self._take_unsent() + self._add(token)
        logprobs = None if logprob is None else (logprob,)
        return Event(self.rid, index, (token,), text, logprobs, self.finish)

    def end(self, finish: Finish, error: str | None = None, code: str | None = None) -> Event:
        """The last event of a sequence that ends without a new token; text that was held back is sent with
        it.
        """
        self.finish = finish
        text = self._take_unsent() + self._text.finish()
        return Event(self.rid, len(self.tokens), (), text, None, finish, error, code)

    def _add(self, token: int) -> str:
        self.tokens.append(token)
        ends = token in self._eos
        text = "" if ends else self._text.push(token)  # an end token has no text
        if ends or self._text.stopped:
            self.finish = "stop"
        elif len(self.tokens) >= self.request.sampling.max_tokens:
            self.finish = "length"
        if self.finish is None:
            return text
        text += self._text.finish()
        if self._text.stopped:
            self.finish = "stop"
        return text

    def _take_unsent(self) -> str:
        text, self._unsent = self._unsent, ""
        return text
