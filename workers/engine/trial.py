"""Sequences that nobody asked for, run at load: to check a backend, and to warm it up."""

from __future__ import annotations

from collections.abc import Sequence

from workers.engine.batching import Backend
from workers.engine.sequence import LiveSequence


def arbitrary_text(number: int, length: int, vocab_size: int) -> list[int]:
    """Tokens that share no prefix with those of another number."""
    return [(number * 7919 + at * 104729) % vocab_size for at in range(length)]


def run_to_end(backend: Backend, sequences: Sequence[LiveSequence]) -> None:
    """Step until all of them have ended, and let each go."""
    live = {sequence.rid: sequence for sequence in sequences}
    for sequence in sequences:
        backend.add(sequence)
    while live:
        for made in backend.forward():
            live[made.rid].advance(made.token)
            if live[made.rid].finish is not None:
                del live[made.rid]
                backend.drop(made.rid)
