"""One sequence after the other, each with a cache of its own: for models whose attention is not known to `attention`.

Whatever runs with a cache that transformers makes, runs here, with the answers of `generate()`; but a step costs a forward
for every sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from workers.engine.batching import Chooses, Made
from workers.engine.budget import Budget
from workers.engine.sequence import LiveSequence


class SerialBackend:
    """A `workers.engine.batching.Backend` without batches.

    A sequence is admitted when the whole of it, prompt and longest answer, fits beside the others; so none is ever put
    back. A prompt is read in one forward, however long it is.
    """

    def __init__(self, model: Any, sampler: Chooses, budget: Budget) -> None:
        self._model = model
        self.sampler = sampler
        self._budget = budget
        self.max_batch_tokens = budget.max_batch_tokens
        self._waiting: dict[str, LiveSequence] = {}
        self._active: dict[str, tuple[LiveSequence, Any]] = {}  # with its cache
        self._batch: list[str] = []
        self._cuts_logits = bool(model._supports_logits_to_keep())

    @property
    def capacity(self) -> int:
        """The longest sequence, prompt and answer."""
        return self._budget.kv_tokens

    def add(self, sequence: LiveSequence) -> None:
        self._waiting[sequence.rid] = sequence

    def drop(self, rid: str) -> None:
        self._waiting.pop(rid, None)
        self._active.pop(rid, None)

    @torch.inference_mode()
    def forward(self) -> list[Made]:
        made = []
        for sequence, cache in list(self._active.values()):
            self._batch = [sequence.rid]  # whoever asks after a failure learns whose it was
            made.append(self._advance(sequence, cache, sequence.tokens[-1:]))
        room = self.max_batch_tokens
        while room > 0 and (first := self._admit()) is not None:
            self._batch = [first.rid]
            tokens = [*first.request.prompt, *first.tokens]
            made.append(self._advance(first, self._active[first.rid][1], tokens))
            room -= len(tokens)
        self._batch = list(self._active)
        return made

    def batch(self) -> Sequence[str]:
        return self._batch

    def reset(self) -> None:
        self._waiting.clear()
        self._active.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def running(self) -> int:
        return len(self._active)

    def kv_used(self) -> float:
        """Counts what is promised to the active sequences."""
        return self._promised() / self._budget.kv_tokens

    def close(self) -> None:
        self._waiting.clear()
        self._active.clear()
        self._model = None

    def _advance(self, sequence: LiveSequence, cache: Any, tokens: Sequence[int]) -> Made:
        ids = torch.tensor([tokens], device=self._model.device)
        cut = {"logits_to_keep": 1} if self._cuts_logits else {}
        logits: Tensor = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **cut).logits[0, -1:]
        (choice,) = self.sampler.choose(logits.float(), [sequence])
        return Made(sequence.rid, *choice)

    def _promised(self) -> int:
        return sum(map(_longest, (sequence for sequence, _ in self._active.values())))

    def _admit(self) -> LiveSequence | None:
        """The next sequence in line, if it fits beside the active ones, with a new cache."""
        first = next(iter(self._waiting.values()), None)
        if first is None or len(self._active) >= self._budget.max_num_seqs:
            return None
        if self._promised() + _longest(first) > self._budget.kv_tokens:
            return None
        cache: Any = DynamicCache(config=self._model.config.get_text_config())
        self._active[first.rid] = self._waiting.pop(first.rid), cache
        return first


def _longest(sequence: LiveSequence) -> int:
    return len(sequence.request.prompt) + sequence.request.sampling.max_tokens
