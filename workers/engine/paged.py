"""The one place that touches private parts of transformers' continuous batching (together with `attention`).

transformers keeps the paged KV cache, cuts long prompts into chunks, shares prefixes and decides which
sequences are in the next batch. We call its batch processor one step at a time, from our own thread, and
choose the tokens ourselves. The version of transformers is pinned exactly; the contract suite must pass
before the pin moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState

from workers.engine.batching import Made
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence


@dataclass(frozen=True, slots=True)
class Budget:
    """How much runs at once: sequences, tokens in the KV cache, and tokens that one forward computes."""

    max_num_seqs: int
    kv_tokens: int
    max_batch_tokens: int
    page_size: int = 32


class _NoOutput(OutputRouter):
    """Tokens are taken where they are chosen, so nothing is collected here."""

    def deliver(self, output: GenerationOutput) -> None:
        pass

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        pass


class PagedBackend:
    """A `workers.engine.batching.Backend` on transformers' `ContinuousBatchProcessor`."""

    def __init__(self, model: Any, sampler: Sampler, budget: Budget) -> None:
        self._model = model
        self._sampler = sampler
        self._sequences: dict[str, LiveSequence] = {}
        self._made: list[Made] = []
        self._batch: list[str] = []
        neutral: Any = GenerationConfig  # untyped
        batching = self._model.init_continuous_batching(
            generation_config=neutral(do_sample=False, eos_token_id=-1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=budget.page_size,
                num_blocks=-(-budget.kv_tokens // budget.page_size),
                max_batch_tokens=max(budget.max_batch_tokens, budget.max_num_seqs),
                max_requests_per_batch=budget.max_num_seqs,
                max_blocks_per_request=0,
                # The host must see every token before it chooses the next one, so no graphs and no overlap.
                use_async_batching=False,
                use_cuda_graph=False,
                auto_switch_to_flash=False,
            ),
        )
        batching.output_router = _NoOutput()
        self._processor = batching._create_batch_processor()
        self._processor.model_runner._sample = self._sample
        self._cache, self._scheduler = self._processor.cache, self._processor.scheduler

    @property
    def capacity(self) -> int:
        """The longest sequence, prompt and answer, that the empty cache can hold."""
        return int(self._cache.max_tokens_read)

    def add(self, sequence: LiveSequence) -> None:
        request = sequence.request
        self._sequences[request.rid] = sequence
        state = RequestState(
            request_id=request.rid,
            initial_tokens=[*request.prompt, *sequence.tokens],
            max_new_tokens=request.sampling.max_tokens - len(sequence.tokens),
        )
        self._scheduler.add_waiting_request(state)

    def drop(self, rid: str) -> None:
        if self._sequences.pop(rid, None) is None:
            return
        self._scheduler.set_request_cancellation(rid)
        self._scheduler.clear_cancelled_requests()
        self._scheduler.block_new_requests = False  # what it waited for may have come free

    @torch.inference_mode()
    def forward(self) -> list[Made]:
        self._made, self._batch = [], []
        if self._sequences and self._processor.prepare_next_batch():
            futures = self._processor.inputs_and_outputs.requests_in_batch
            self._batch = [future.state.request_id for future in futures]
            self._processor._generation_step(self._model)
            self._processor.update_batch()
        return self._made

    def batch(self) -> Sequence[str]:
        return self._batch

    def reset(self) -> None:
        self._sequences.clear()
        self._processor.reset()
        self._cache.reset()  # also forgets shared prefixes, which a failed forward may have left half written
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def running(self) -> int:
        return len(self._scheduler.active_requests)

    def kv_used(self) -> float:
        """Of live sequences; blocks kept for sharing prefixes are free for whoever needs them."""
        shares = [
            sum(map(len, allocator.block_table.values())) / allocator.num_blocks
            for allocator in self._cache.cache_allocators.values()
        ]
        return float(min(1.0, max(shares)))

    def close(self) -> None:
        self._sequences.clear()
        self._model = self._processor = self._cache = self._scheduler = None

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        """Takes the place of `ModelRunner._sample`: rows are the sequences whose prompt has been read in
        full.
        """
        futures = self._processor.inputs_and_outputs.requests_in_batch
        rows = [self._sequences[future.state.request_id] for future in futures if future.has_new_token]
        if not rows:
            return
        choices = self._sampler.choose(scores[0, : len(rows)], rows)
        tokens = torch.tensor([choice.token for choice in choices], dtype=output_ids.dtype)
        output_ids[0, : len(rows)].copy_(tokens)
        self._made = [Made(row.rid, *choice) for row, choice in zip(rows, choices, strict=True)]
