"""From tokens to the text that may be sent: incremental detokenising and stop strings.

Everything here is a pure function of the tokens pushed so far. A resumed sequence pushes the tokens of its
earlier attempts again and is then in the same state as if it had never been interrupted; that is also why it
must be a replay: a `DecodeStream` that starts from a prefix loses the characters that were cut at the
boundary.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# A character is at most four bytes, so a longer run that is still incomplete is not going to become one.
MAX_HELD_TOKENS = 8
_LONGEST_CHARACTER = 4


class Detokenizer:
    """Text as it becomes final: characters that need more tokens are held back until they are complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._context: list[int] = []  # the last tokens whose text ended cleanly: a new stream starts from them
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty in the middle of a character."""
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the decoder rewrote text that was already given out, as WordPiece's clean-up does
            return self._release(())
        if text:
            self._context, self._held = self._held, []
            return str(text)
        return self._release(self._unfinished()) if len(self._held) > MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        """What is still held, incomplete characters as U+FFFD. Nothing may be pushed after it."""
        text = self._text_of(self._held)
        self._held = []
        return text

    def _text_of(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        before = self._decode(self._context)
        whole = self._decode([*self._context, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _unfinished(self) -> Sequence[int]:
        """The shortest tail of the held tokens without which the text is shorter: it may yet become a
        character.
        """
        whole = self._text_of(self._held)
        for size in range(1, _LONGEST_CHARACTER + 1):
            rest = self._text_of(self._held[:-size])
            if whole.startswith(rest) and len(rest) < len(whole):
                return self._held[-size:]
        return ()

    def _release(self, tail: Sequence[int]) -> str:
        """Give out everything held but `tail`, and start a new stream with it."""
        text = self._text_of(self._held[: len(self._held) - len(tail)])
        self._held = []
        self._stream = DecodeStream(ids=list(self._context), skip_special_tokens=True)
        return text + "".join(self.push(token) for token in tail)


class AnswerText:
    """The text of one answer: detokenised, cut at its first stop string, and without what was sent before.

    `emitted` is the number of characters that earlier attempts sent. Text that may be the start of a stop
    string is held until it is clear; of several stop strings the one that is complete first wins, however the
    tokens fall.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), emitted: int = 0) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._skip = emitted
        self._pending = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is final after `token`; "" once a stop string was reached."""
        if self.stopped:
            return ""
        return self._take(self._detokenizer.push(token))

    def finish(self) -> str:
        """The rest of the text, when no stop string was reached."""
        if self.stopped:
            return ""
        text = self._take(self._detokenizer.flush())
        rest, self._pending = ("" if self.stopped else self._pending), ""
        return text + self._unsent(rest)

    def _take(self, text: str) -> str:
        if not self._stop:
            return self._unsent(text)
        self._pending += text
        end = self._first_stop()
        self.stopped = end is not None
        if end is None:
            end = len(self._pending) - self._undecided()
        text, self._pending = self._pending[:end], self._pending[end:]
        return self._unsent(text)

    def _first_stop(self) -> int | None:
        """Where the stop string that is complete first begins."""
        found = [(at + len(stop), at) for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _undecided(self) -> int:
        """The length of the longest end of the pending text that could begin a stop string."""
        for size in range(min(len(self._pending), max(map(len, self._stop)) - 1), 0, -1):
            if any(stop.startswith(self._pending[-size:]) for stop in self._stop):
                return size
        return 0

    def _unsent(self, text: str) -> str:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]
