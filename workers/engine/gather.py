"""Attention anywhere, and what a CPU uses: pages are copied together, and torch's matrix products do the rest.

Sequences that decode are batched with others of similar length, as many as fit a core's own cache with their copies;
prompts run one by one. Pages hold a head's keys side by side, so that a copy is what the matrix products read best: with the
heads of a token side by side, as the model makes them, attention took three times as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.engine.dense import DenseCopies, Group
from workers.engine.paged_batch import Integers, Layer, PagedBatch, head_pages
from workers.engine.prefill import Prompt, plan_prompt, prefill

#: Of keys, and as much of values, that are copied at a time: what a core's cache holds. Half or twice of it was no better.
_COPY_BYTES = 1 << 20


def gather_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, paged: PagedBatch | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [1, heads, tokens, width] to output [1, tokens, heads, width]."""
    if paged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    paged.accept(sliding_window, key, value, kwargs)
    layer = paged.layer(module)
    places: Tensor = paged.once("rows", lambda: _rows(paged, layer.heads))
    for rows, new in zip(layer.by_head(), (key, value), strict=True):
        rows.index_copy_(0, places, new.reshape(-1, new.shape[-1]))
    plan: _Plan = paged.once(sliding_window, lambda: _plan(paged, layer, sliding_window))
    if plan.order is None:
        return _decode(plan, paged, layer, query, key, value, scaling)[None], None
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    if plan.buckets:
        out.index_copy_(0, plan.order, _decode(plan, paged, layer, query, key, value, scaling))
    for part in plan.prompts:
        keys, values = part.look_up(paged, layer, key, value)
        out[part.begin : part.end] = prefill(part, query[:, :, part.begin : part.end], keys, values, scaling)
    return out[None], None


@dataclass(slots=True)
class _Bucket:
    """Decoding sequences of similar length, padded to whole pages of the longest of them."""

    begin: int  # where they stand among those that decode
    end: int
    mask: Tensor  # [sequences, 1, 1, keys], to be added to the scores
    pages: Tensor  # [sequences * heads * pages] pages of heads

    def look_up(self, paged: PagedBatch, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Their keys and their values, [sequences, heads, keys, width]."""
        return paged.copies(layer, self.pages, self.end - self.begin)


@dataclass(slots=True)
class _Copied:
    """Decoding sequences whose keys and values lie side by side already, or do so from now on."""

    begin: int
    end: int
    mask: Tensor
    group: Group
    tokens: Tensor  # those whose keys and values are added to the copies
    rows: Tensor  # [heads * tokens] where they go
    places: Tensor  # whose pages are copied
    pages: Tensor  # [places * heads * pages]

    def look_up(self, paged: PagedBatch, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The same."""
        number, longest = layer.number, self.mask.shape[-1]
        copies = self.group.keys[number], self.group.values[number]
        if len(self.tokens):
            for copy, new in zip(copies, (key, value), strict=True):
                added = new[0].index_select(1, self.tokens)
                copy.view(-1, copy.shape[-1]).index_copy_(0, self.rows, added.view(-1, copy.shape[-1]))
        if len(self.places):
            for copy, found in zip(copies, paged.copies(layer, self.pages, len(self.places)), strict=True):
                size = min(found.shape[2], copy.shape[2])
                copy[:, :, :size].index_copy_(0, self.places, found[:, :, :size])
        count = self.end - self.begin
        return copies[0][:count, :, :longest], copies[1][:count, :, :longest]


@dataclass(slots=True)
class _Plan:
    """How one forward is cut up. `order` are the tokens that decode, bucket by bucket; None: all tokens, as they stand."""

    order: Tensor | None
    buckets: list[_Bucket | _Copied]
    prompts: list[Prompt]


def _rows(paged: PagedBatch, heads: int) -> Tensor:
    """Where the keys and values go, as rows of `Layer.by_head`, head by head."""
    size = paged.cache.page_size
    pages, places = np.divmod(paged.places, size)
    rows = (pages * heads + np.arange(heads)[:, None]) * size + places
    return torch.from_numpy(rows.reshape(-1)).to(paged.device)


def _plan(paged: PagedBatch, layer: Layer, window: int | None) -> _Plan:
    size, heads = paged.cache.page_size, layer.heads
    new = np.diff(paged.starts)
    rows = np.flatnonzero(new == 1)
    buckets: list[_Bucket | _Copied] = []
    order: list[Integers] = []
    if window is None and paged.cache.dense is not None:
        for group, own in _arranged(paged, paged.cache.dense, rows):
            buckets.append(_copied(paged, group, own, sum(map(len, order)), heads))
            order.append(own)
        rows = np.setdiff1d(rows, np.concatenate(order)) if order else rows
    # With a window, pages that no key is needed of are left out.
    first = np.maximum(paged.lengths - window, 0) // size if window else np.zeros_like(paged.lengths)
    needed = -(-paged.lengths // size) - first
    rows = rows[np.argsort(needed[rows], kind="stable")]
    at, begin = 0, sum(map(len, order))
    page_bytes = layer.key_pages[0].nbytes
    for count in _cut(needed[rows], max(1, _COPY_BYTES // page_bytes)):
        buckets.append(_bucket(paged, rows[at : at + count], begin + at, first, needed, heads, window))
        at += count
    rows = np.concatenate([*order, rows])
    whole = len(rows) == len(new) and bool((rows[1:] > rows[:-1]).all())
    tokens = None if whole else torch.from_numpy(paged.starts[rows]).to(paged.device)
    prompts = [
        plan_prompt(paged, int(row), int(new[row]), heads, window, layer.key_pages.dtype)
        for row in np.flatnonzero(new > 1)
    ]
    return _Plan(tokens, buckets, prompts)


def _arranged(paged: PagedBatch, dense: DenseCopies, rows: Integers) -> Iterator[tuple[Group, Integers]]:
    """The groups of copies, with the sequences of each in the order of their places."""
    numbers = {paged.rids[row]: row for row in rows.tolist()}
    for group in dense.arrange(list(numbers), paged.lengths[rows].tolist()):
        yield group, np.array([numbers[rid] for rid in group.places], np.int64)


def _copied(paged: PagedBatch, group: Group, rows: Integers, begin: int, heads: int) -> _Copied:
    lengths = paged.lengths[rows]
    fresh = np.array(sorted(group.fresh), np.int64)
    kept = np.setdiff1d(np.arange(len(rows)), fresh)
    targets = (kept * heads + np.arange(heads)[:, None]) * group.length + lengths[kept] - 1
    count = -(-int(lengths[fresh].max()) // paged.cache.page_size) if len(fresh) else 0
    return _Copied(
        begin, begin + len(rows), _mask(np.arange(int(lengths.max())) < lengths[:, None]), group,
        torch.from_numpy(paged.starts[rows[kept]]), torch.from_numpy(targets.reshape(-1)),
        torch.from_numpy(fresh), head_pages(paged.table[rows[fresh], :count], heads),
    )  # fmt: skip


def _cut(needed: Integers, most: int) -> Iterator[int]:
    """How many of these sequences, by ascending need of pages, are batched: their copies have at most `most` pages, of
    which less than half are padding.
    """
    begin = 0
    for at, pages in enumerate(needed.tolist()):
        if at > begin and ((at + 1 - begin) * pages > most or pages > max(2, 2 * needed[begin])):
            yield at - begin
            begin = at
    if begin < len(needed):
        yield len(needed) - begin


def _bucket(
    paged: PagedBatch, rows: Integers, begin: int, first: Integers, needed: Integers, heads: int, window: int | None
) -> _Bucket:
    size, count, begins, lengths = (
        paged.cache.page_size,
        int(needed[rows[-1]]),
        first[rows, None],
        paged.lengths[rows, None],
    )
    places = begins + np.arange(count)
    pages = paged.table[rows[:, None], np.minimum(places, paged.table.shape[1] - 1)]
    keys = begins * size + np.arange(count * size)
    seen = keys < lengths
    if window:
        seen &= keys >= lengths - window
    flat = head_pages(pages, heads).to(paged.device)
    return _Bucket(begin, begin + len(rows), _mask(seen).to(paged.device), flat)


def _mask(seen: NDArray[np.bool_]) -> Tensor:
    """What is to be added to scores [sequences, 1, 1, keys]."""
    return torch.zeros(seen.shape).masked_fill_(torch.from_numpy(~seen), -torch.inf)[:, None, None]


def _decode(
    plan: _Plan, paged: PagedBatch, layer: Layer, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> Tensor:
    """One query token per sequence; the query heads of one key head stand in the place of query positions."""
    heads, width = query.shape[1], query.shape[3]
    tokens = query[0].transpose(0, 1)
    if plan.order is not None:
        tokens = tokens.index_select(0, plan.order)
    packed = (tokens * (width**-0.5 if scaling is None else scaling)).reshape(len(tokens), layer.heads, -1, width)
    out = []
    for bucket in plan.buckets:
        keys, values = bucket.look_up(paged, layer, key, value)
        scores = torch.matmul(packed[bucket.begin : bucket.end], keys.transpose(2, 3)).float().add_(bucket.mask)
        out.append(torch.matmul(scores.softmax(dim=-1).to(values.dtype), values))
    return (out[0] if len(out) == 1 else torch.cat(out)).reshape(-1, heads, width)
