"""Does the batching backend compute what the model computes by itself? Asked once, when a model is loaded.

Architectures differ in what they want of their attention, and a new one may differ in a way that nobody has thought of.
So a model is not batched because its name is on a list, but because the tokens of two texts, read in parts and next to
each other, get the logits that the model gives without any cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks.sampling import Sampling
from workers.engine.base import Request
from workers.engine.batching import Backend, Chooses
from workers.engine.paged_batch import Unsupported
from workers.engine.recovery import is_fatal, is_out_of_memory
from workers.engine.sampler import Choice
from workers.engine.sequence import LiveSequence
from workers.engine.trial import arbitrary_text, run_to_end

ANSWER = 3  # tokens of each text that are decoded one by one
_PART = 24  # tokens of one forward, so that the longer text is read in parts
#: How far a logit may be off, as a share of the standard deviation of all of them.
TOLERANCE = {torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 2e-1}


def sample_texts(size: int, longest: int) -> list[list[int]]:
    """Two texts of arbitrary tokens out of `size`, the second longer than a page if `longest` allows."""
    lengths = (min(11, longest), min(43, longest))
    return [arbitrary_text(number, length, size) for number, length in enumerate(lengths, 1)]


@torch.inference_mode()
def plain_logits(model: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits [answer tokens, vocabulary] from which each text's last tokens would be chosen."""
    return [
        model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0, -ANSWER - 1 : -1].float()
        for text in texts
    ]


class Checked(Backend, Protocol):
    """A backend whose sampler and parts can be changed for a while."""

    sampler: Chooses
    max_batch_tokens: int


def check(
    backend: Checked,
    tokenizer: Tokenizer,
    tolerance: float,
    texts: Sequence[Sequence[int]],
    expected: Sequence[Tensor],
) -> None:
    """Raises `Unsupported`. As the first use of the backend it also warms it up."""
    recorder = _Recorder(texts)
    own = backend.sampler, backend.max_batch_tokens
    backend.sampler, backend.max_batch_tokens = recorder, min(_PART, own[1])
    sampling = Sampling(max_tokens=ANSWER, seed=0)
    sequences = [
        LiveSequence(Request(str(number), text[:-ANSWER], sampling), tokenizer, ()) for number, text in enumerate(texts)
    ]
    try:
        run_to_end(backend, sequences)
    except Unsupported:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        if is_fatal(error) or is_out_of_memory(error):
            raise
        raise Unsupported(f"{type(error).__name__}: {error}") from error
    finally:
        backend.reset()
        backend.sampler, backend.max_batch_tokens = own
    for found, wanted in zip(recorder.logits, expected, strict=True):
        off = float((torch.stack(found) - wanted).abs().max() / wanted.std())
        if not off < tolerance:
            raise Unsupported(f"its logits would be off by {off:.2g} of their standard deviation")


class _Recorder:
    """Takes the sampler's place: keeps the logits, and chooses what the text says."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts
        self.logits: list[list[Tensor]] = [[] for _ in texts]

    def choose(self, logits: Tensor, rows: Sequence[LiveSequence]) -> list[Choice]:
        choices = []
        for row, found in zip(rows, logits.clone(), strict=True):
            number = int(row.rid)
            self.logits[number].append(found)
            choices.append(Choice(self._texts[number][len(row.tokens) - ANSWER], None))
        return choices
