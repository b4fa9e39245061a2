"""Single tokens as text and bytes, for log probabilities. Not for answers: their text needs the tokens
together.
"""

from __future__ import annotations

import re
from functools import cache

from tokenizers import Tokenizer, pre_tokenizers

from workers.engine.base import TokenLogprob

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_START = "▁"


@cache
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: bytes that print stand for themselves, the others follow from code point 256
    on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in printable)
    table |= {chr(256 + offset): byte for offset, byte in enumerate(hidden)}
    if table.keys() != set(pre_tokenizers.ByteLevel.alphabet()):
        raise RuntimeError("the byte-level alphabet of the tokenizers library has changed")
    return table


LEAST = -9999.0


class Vocabulary:
    """Looks tokens up, and remembers them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, tuple[int, ...]]] = {}

    def logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        """A token with its log probability, at least `LEAST`: JSON has no infinity, and OpenAI uses this number."""
        text, raw = self._known.get(token) or self._look_up(token)
        return TokenLogprob(text, max(logprob, LEAST), raw, top)

    def _look_up(self, token: int) -> tuple[str, tuple[int, ...]]:
        text = str(self._tokenizer.decode([token], skip_special_tokens=False))
        piece = self._tokenizer.id_to_token(token) or ""
        if piece.startswith(_WORD_START) and not text.startswith(" "):
            text = " " + text
        raw = _raw_bytes(piece) if "\ufffd" in text else text.encode()
        self._known[token] = text, tuple(raw)
        return self._known[token]


def _raw_bytes(piece: str) -> bytes:
    """The bytes of a piece that is no valid text by itself."""
    match = _BYTE_PIECE.fullmatch(piece)
    if match is not None:
        return bytes([int(match[1], 16)])
    table = _byte_of_character()
    return bytes(table[char] for char in piece) if all(char in table for char in piece) else piece.encode()
