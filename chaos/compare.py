"""What the checks of the audit are made of: numbers without gaps, texts and log probabilities of an undisturbed run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chaos.record import Logprob

if TYPE_CHECKING:
    from chaos.audit import Column

#: fp32, but not the same sums: neighbours in a batch may change the last digits of a log probability.
LOGPROB_TOLERANCE = 2e-3


def dense(numbers: Iterable[int], first: int, what: str) -> Iterator[tuple[Column, str]]:
    """Each number once, in order, none left out; says the first that is not."""
    due = first
    for number in numbers:
        if number != due:
            yield ("gaps" if number > due else "duplicated"), f"{what} {number} where {due} was due"
            return
        due += 1


def same(where: str, text: str, expected: str, whole: bool) -> Iterator[tuple[Column, str]]:
    """The text of an undisturbed run, or a beginning of it: one that was cut off may end inside a character."""
    if text == expected or (not whole and expected.startswith(text.removesuffix("\ufffd"))):
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), min(len(text), len(expected))
    )
    shown, wanted = text[max(0, at - 10) : at + 30], expected[max(0, at - 10) : at + 30]
    yield "wrong texts", f"{where}: from character {at} on {shown!r}, undisturbed {wanted!r}"


def same_logprobs(
    where: str, found: Sequence[Logprob], expected: Sequence[Logprob], whole: bool
) -> Iterator[tuple[Column, str]]:
    """The log probabilities of an undisturbed run, or the first of them."""
    if len(found) > len(expected) or (whole and len(found) != len(expected)):
        yield "wrong texts", f"{where}: {len(found)} log probabilities, undisturbed {len(expected)}"
        return
    for (token, value), (wanted, undisturbed) in zip(found, expected, strict=False):
        if token != wanted or not math.isclose(value, undisturbed, abs_tol=LOGPROB_TOLERANCE):
            yield "wrong texts", f"{where}: {token!r} {value:.4f}, undisturbed {wanted!r} {undisturbed:.4f}"
            return
