"""Grammars over a model's tokens: which ones may come next, so that the answer follows its grammar (llguidance).

A constraint is a pure function of the grammar and the tokens taken so far: a resumed sequence replays its tokens. Its
errors are those of one sequence; nothing here raises in a step.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.grammar import FIELDS, LIMITS, readable, source
from tasks.sampling import Grammar
from workers.engine.base import InvalidRequest

_BITS = 32
_STUCK = "no token of this model can go on"
_NO_END = "<|penstock: this model has no end token|>"


class Constraint:
    """The grammar of one sequence. `allowed` has a bit for every token that may come next; `look` fills it.

    `ended` is true when nothing may follow, `error` is set when the grammar cannot go on at all.
    """

    def __init__(self, matcher: LLMatcher, field: str, size: int, known: NDArray[np.int32]) -> None:
        self.ended = False
        self.error: str | None = None
        self._matcher = matcher
        self._field = field
        self._known = known
        self._mask: NDArray[np.int32] = np.zeros((1, -(-size // _BITS)), dtype=np.int32)

    @property
    def allowed(self) -> NDArray[np.int32]:
        """32 tokens to a word, the first one in its lowest bit."""
        mask: NDArray[np.int32] = self._mask[0, : len(self._known)]
        return mask

    def take(self, token: int) -> None:
        """Go on by a token of the answer, which is no end token."""
        self._matcher.consume_token(token)
        self._settle(self._matcher.is_stopped())

    def look(self, forbidden: Collection[int] = ()) -> None:
        """Find out what may come next; `forbidden` are tokens that may not, whatever the grammar says."""
        fill_next_token_bitmask(self._matcher, self._mask)
        self._mask[0, : len(self._known)] &= self._known
        self._settle(not self.allowed.any())
        if self.ended or not forbidden:
            return
        words = self._mask[0].view(np.uint32)
        for token in forbidden:
            words[token // _BITS] &= ~np.uint32(1 << token % _BITS)
        if not self.allowed.any():
            self.ended = True
            if not self._matcher.is_accepting():
                self.error = (
                    f"min_tokens: {self._field} allows nothing next but stop_token_ids, which end the answer too early"
                )

    def _settle(self, stuck: bool) -> None:
        self.ended = stuck or self._matcher.is_error()
        if self._matcher.is_error():
            self.error = _message(self._field, self._matcher)
        elif stuck and not self._matcher.is_accepting():
            self.error = f"{self._field}: {_STUCK}"


class Grammars:
    """Makes constraints for one model. Raises ValueError for a tokenizer that llguidance cannot read."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: Collection[int]) -> None:
        bits = np.arange(-(-vocab_size // _BITS) * _BITS) < vocab_size
        ends = sorted(token for token in eos if tokenizer.id_to_token(token) is not None)
        if not ends:  # llguidance must have one: a token that is never allowed
            tokenizer = Tokenizer.from_str(tokenizer.to_str())
            tokenizer.add_special_tokens([_NO_END])
            ends = tokenizer.encode(_NO_END, add_special_tokens=False).ids
            bits[ends[0] : ends[0] + 1] = False  # beyond the model's logits there is nothing to forbid
        self._size = max(vocab_size, *(token + 1 for token in tokenizer.get_vocab().values()))
        self._tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=self._size, eos_token=ends)
        self._known: NDArray[np.int32] = np.packbits(bits, bitorder="little").view(np.int32)

    def constraint(self, grammar: Grammar) -> Constraint:
        """The constraint of a new sequence. Raises `InvalidRequest` for a grammar that cannot be used."""
        field = FIELDS[grammar.kind]
        try:
            text = source(grammar)
        except ValueError as error:
            raise InvalidRequest(f"{field}: {error}") from None
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidRequest(_message(field, matcher))
        return Constraint(matcher, field, self._size, self._known)


def grammars_of(tokenizer: Tokenizer, vocab_size: int, eos: Collection[int]) -> Grammars | None:
    """None for a tokenizer that llguidance does not know: such a model is served without structured output."""
    try:
        return Grammars(tokenizer, vocab_size, eos)
    except ValueError:
        return None


def _message(field: str, matcher: LLMatcher) -> str:
    text = readable(matcher.get_error())
    return f"{field}: {_STUCK if text == 'NoExtensionBias' else text}"
