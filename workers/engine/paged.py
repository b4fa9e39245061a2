"""The one place that touches private parts of transformers' continuous batching.

transformers keeps the paged KV cache, cuts long prompts into chunks, shares prefixes and decides which sequences are in
the next batch. The rest of a step is ours: we lay the batch out, run the model with our attention, choose the tokens,
and tell transformers of them. The version of transformers is pinned exactly; the contract suite must pass before the
pin moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from workers.engine.attention import VARLEN, register
from workers.engine.batching import Chooses, Made
from workers.engine.budget import Budget
from workers.engine.dense import DenseCopies, Shape
from workers.engine.known import check_layers
from workers.engine.paged_batch import Integers, KvCache, Layer, PagedBatch
from workers.engine.readers import Readers
from workers.engine.sequence import LiveSequence
from workers.engine.varlen import VARLEN_PAGE

_NO_LIMIT = 1 << 60


class PagedBackend:
    """A `workers.engine.batching.Backend` on transformers' paged cache and scheduler.

    Raises `Unsupported` for a model of whose layers it does not know all.
    """

    def __init__(self, model: Any, sampler: Chooses, budget: Budget) -> None:
        self.sampler = sampler
        self.max_batch_tokens = max(budget.max_batch_tokens, budget.max_num_seqs)
        self._model = model
        self._sequences: dict[str, LiveSequence] = {}
        self._readers = Readers()
        self._batch: list[str] = []
        name = register(model.device, model.dtype)
        page_size = VARLEN_PAGE if name == VARLEN else budget.page_size
        alone = DistributedHelper(device_mesh=None, cpu_group_timeout=None)
        self._cache = _cache(model, budget, self.max_batch_tokens, page_size, alone)
        # The public setter takes any name that it does not know for that of a kernel to fetch.
        model.config._attn_implementation = model.config.get_text_config()._attn_implementation = name
        self._pages = self._cache.cache_allocators["full_attention"]
        self._scheduler: Any = FIFOScheduler(
            self._cache, safety_margin=None, max_requests_per_batch=budget.max_num_seqs
        )
        self._starved: Any = OffloadingManager(self._cache, self._scheduler, 0.0, 0.0, None, alone)
        self._kv = _kv(self._pages, self._cache, page_size)
        self._cuts_logits = bool(model._supports_logits_to_keep())

    @property
    def capacity(self) -> int:
        """The longest sequence, prompt and answer, that the empty cache can hold."""
        return int(self._cache.max_tokens_read)

    def add(self, sequence: LiveSequence) -> None:
        self._sequences[sequence.rid] = sequence
        prompt = sequence.request.prompt
        # Only whole pages are shared.
        if len(prompt) < self._kv.page_size or self._readers.join(sequence.rid, prompt):
            self._line_up(sequence.rid)

    def drop(self, rid: str) -> None:
        if self._sequences.pop(rid, None) is None:
            return
        next_reader = self._readers.leave(rid)
        if next_reader is not None:
            self._line_up(next_reader, first=True)
        self._kv.forget(rid)
        self._scheduler.set_request_cancellation(rid)
        self._scheduler.clear_cancelled_requests()
        self._scheduler.block_new_requests = False  # what it waited for may have come free

    @torch.inference_mode()
    def forward(self) -> list[Made]:
        self._batch = []
        futures = self._schedule() if self._sequences else []
        if not futures:
            return []
        self._batch = [future.state.request_id for future in futures]
        logits = self._run(futures)
        rows = [self._sequences[future.state.request_id] for future in futures if future.has_new_token]
        choices = self.sampler.choose(logits.float(), rows) if rows else []
        self._note(futures, [choice.token for choice in choices])
        return [Made(row.rid, *choice) for row, choice in zip(rows, choices, strict=True)]

    def batch(self) -> Sequence[str]:
        return self._batch

    def reset(self) -> None:
        self._sequences.clear()
        self._readers.clear()
        self._starved.reset()
        self._scheduler.reset()
        self._cache.reset()  # also forgets shared prefixes, which a failed forward may have left half written
        self._kv.clear()
        self._cache.cache_tensor.zero_()  # what is not a number there would spoil the sums of whoever gets the page
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def windows(self) -> set[int | None]:
        """The sliding windows that the model has asked of its attention so far; None: all keys."""
        return self._kv.windows

    def running(self) -> int:
        return len(self._scheduler.active_requests)

    def kv_used(self) -> float:
        """Of live sequences; blocks kept for sharing prefixes are free for whoever needs them."""
        return float(min(1.0, sum(map(len, self._pages.block_table.values())) / self._pages.num_blocks))

    def close(self) -> None:
        self._sequences.clear()
        self._kv.clear()
        self._kv.layers.clear()
        self._model = self._cache = self._pages = self._scheduler = self._starved = None

    def _line_up(self, rid: str, first: bool = False) -> None:
        sequence = self._sequences[rid]
        tokens = [*sequence.request.prompt, *sequence.tokens]
        self._scheduler.add_waiting_request(RequestState(rid, tokens, max_new_tokens=None))
        if first:
            self._scheduler.waiting_requests_order.rotate(1)

    def _schedule(self) -> list[FutureRequestState]:
        """The sequences of the next forward. Where the cache is full, some go back to where they came from."""
        while True:
            futures, *_ = self._scheduler.schedule_batch(self.max_batch_tokens, _NO_LIMIT)
            if futures is not None:
                break
            if not self._starved.offload_requests():
                raise RuntimeError("the KV cache is full, and no sequence can be put back")
        if self._scheduler.starved_requests:
            self._starved.offload_requests()
        return list(futures)

    def _run(self, futures: Sequence[FutureRequestState]) -> Tensor:
        """One forward; the logits [rows, vocabulary] of the sequences whose prompt has been read in full."""
        tokens = np.fromiter(chain.from_iterable(future.state.tokens_to_process for future in futures), np.int64)
        past = np.fromiter((future.state.position_offset for future in futures), np.int64, len(futures))
        new = np.fromiter((future.query_length for future in futures), np.int64, len(futures))
        paged, positions = self._lay_out([future.state.request_id for future in futures], past, new)
        last = paged.starts[1:][[future.has_new_token for future in futures]] - 1
        ids, places, wanted = (torch.from_numpy(each).to(paged.device) for each in (tokens, positions, last))
        cut = {"logits_to_keep": wanted} if self._cuts_logits else {}
        out = self._model(input_ids=ids[None], position_ids=places[None], use_cache=False, paged=paged, **cut)
        logits: Tensor = out.logits[0]
        return logits if self._cuts_logits else logits[wanted]

    def _lay_out(self, rids: Sequence[str], past: Integers, new: Integers) -> tuple[PagedBatch, Integers]:
        """The batch, and the position of each of its tokens in its sequence."""
        size, stride = self._pages.tokens_per_page, self._pages.block_physical_stride
        lengths = past + new
        starts = np.zeros(len(rids) + 1, np.int64)
        np.cumsum(new, out=starts[1:])
        table = np.zeros((len(rids), -(-int(lengths.max()) // size)), np.int64)
        for row, rid in zip(table, rids, strict=True):
            blocks = self._pages.block_table[rid]
            row[: len(blocks)] = blocks
        rows = np.repeat(np.arange(len(rids)), new)
        positions = np.arange(starts[-1]) + (past - starts[:-1])[rows]
        places = table[rows, positions // size] * stride + positions % size
        table *= stride // size
        return PagedBatch(self._kv, rids, starts, lengths, table, places), positions

    def _note(self, futures: Sequence[FutureRequestState], tokens: Sequence[int]) -> None:
        """Tell the scheduler what was computed, and which token follows."""
        chosen = iter(tokens)
        for future in futures:
            state = future.state
            state.position_offset += future.query_length
            if future.has_new_token:
                token = next(chosen)
                for reader in reversed(self._readers.has_read(state.request_id)):
                    self._line_up(reader, first=True)  # before those that came after them
                state.generated_tokens.append(token)
                state.tokens_to_process = [token]
            if future.complete_blocks:
                self._cache.mark_complete_blocks(state, future.complete_blocks)


def _kv(pages: Any, cache: Any, page_size: int) -> KvCache:
    """The layers of the cache for our attention; on a CPU with as much room again for copies."""
    layers = {layer: Layer(layer, *pages._kv_page_views[layer]) for layer in pages.layer_indices}
    dense = None
    if cache.device.type == "cpu":
        first = next(iter(layers.values())).key_pages
        dense = DenseCopies(
            Shape(tuple(layers), first.shape[2], first.shape[3], first.dtype), cache.cache_tensor.nbytes
        )
    return KvCache(layers, page_size, cache.device, dense)


def _cache(model: Any, budget: Budget, max_batch_tokens: int, page_size: int, alone: DistributedHelper) -> Any:
    """A cache in which every layer keeps all of its keys, also one that attends to a sliding window of them: so all
    layers share one table of pages, and prefixes can be shared.
    """
    text = model.config.get_text_config()
    check_layers(text)
    shape: Any = SimpleNamespace(
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=find_num_key_value_heads(text),
        head_dim=find_head_dim(text),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        _attn_implementation="flash_attention_2",  # what needs no mask
    )
    settings = ContinuousBatchingConfig(
        page_size=page_size,
        num_blocks=-(-budget.kv_tokens // page_size),
        max_batch_tokens=max_batch_tokens,
        max_requests_per_batch=budget.max_num_seqs,
        max_blocks_per_request=0,
        max_memory_percent=1.0,
        use_async_batching=False,
    )
    return PagedAttentionCache(shape, settings, model.device, alone, model.dtype, model_supports_logits_to_keep=True)
