"""Attention anywhere, and what a CPU uses: pages are copied together, and torch's scaled dot-product attention does the rest.

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
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from workers.engine.paged_batch import Integers, Layer, PagedBatch

_COPY_BYTES = (
    1 << 20
)  # of keys, and as much of values: what a core's cache holds. Measured: half or twice of it is slower


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
    plan: _Plan = paged.once(sliding_window, lambda: _plan(paged, layer, sliding_window, query.dtype))
    if plan.order is None:
        return _decode(plan, query, paged, layer, scaling)[None], None
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    if plan.buckets:
        out.index_copy_(0, plan.order, _decode(plan, query, paged, layer, scaling))
    for part in plan.prompts:
        keys, values = part.look_up(paged, layer, key, value)
        out[part.begin : part.end] = _prefill(part, query[:, :, part.begin : part.end], keys, values, scaling)
    return out[None], None


@dataclass(slots=True)
class _Bucket:
    """Decoding sequences of similar length, padded to whole pages of the longest of them."""

    begin: int  # where they stand among those that decode
    end: int
    pages: Tensor  # [sequences * heads * pages] rows of `_pages`
    mask: Tensor  # [sequences, 1, 1, keys], to be added to the scores


@dataclass(slots=True)
class _Prompt:
    """A prompt, or the next part of one. `pages` is None where all of its keys are of this forward."""

    begin: int
    end: int
    keys: int
    pages: Tensor | None  # [heads * pages]
    mask: Tensor | None  # None: plainly causal

    def look_up(self, paged: PagedBatch, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Its keys and its values, [1, heads, keys, width]."""
        if self.pages is None:
            return key[:, :, self.begin : self.end], value[:, :, self.begin : self.end]
        keys, values = _copies(paged, layer, self.pages, 1)
        return keys[:, :, : self.keys], values[:, :, : self.keys]


@dataclass(slots=True)
class _Plan:
    """How one forward is cut up. `order` are the tokens that decode, bucket by bucket; None: all tokens, as they stand."""

    order: Tensor | None
    buckets: list[_Bucket]
    prompts: list[_Prompt]


def _rows(paged: PagedBatch, heads: int) -> Tensor:
    """Where the keys and values go, as rows of `Layer.by_head`, head by head."""
    size = paged.cache.page_size
    pages, places = np.divmod(paged.places, size)
    rows = (pages * heads + np.arange(heads)[:, None]) * size + places
    return torch.from_numpy(rows.reshape(-1)).to(paged.device)


def _copies(paged: PagedBatch, layer: Layer, pages: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    """The keys and values in these pages of heads, copied together: [sequences, heads, keys, width] each."""
    width = layer.key_pages.shape[3]
    found = []
    for name, rows in zip(("keys", "values"), layer.by_head(), strict=True):
        whole = rows.view(-1, paged.cache.page_size * width)
        copy = paged.cache.room(name, len(pages), whole.shape[1], whole.dtype)
        torch.index_select(whole, 0, pages, out=copy)
        found.append(copy.view(sequences, layer.heads, -1, width))
    return found[0], found[1]


def _plan(paged: PagedBatch, layer: Layer, window: int | None, dtype: torch.dtype) -> _Plan:
    size, heads = paged.cache.page_size, layer.heads
    new = np.diff(paged.starts)
    rows = np.flatnonzero(new == 1)
    # With a window, pages that no key is needed of are left out.
    first = np.maximum(paged.lengths - window, 0) // size if window else np.zeros_like(paged.lengths)
    needed = -(-paged.lengths // size) - first
    rows = rows[np.argsort(needed[rows], kind="stable")]
    row_bytes = size * heads * layer.key_pages.shape[3] * dtype.itemsize
    buckets, at = [], 0
    for count in _cut(needed[rows], max(1, _COPY_BYTES // row_bytes)):
        buckets.append(_bucket(paged, rows[at : at + count], at, first, needed, heads, window, dtype))
        at += count
    whole = len(rows) == len(new) and bool((rows[1:] > rows[:-1]).all())
    order = None if whole else torch.from_numpy(paged.starts[rows]).to(paged.device)
    prompts = [_prompt(paged, int(row), int(new[row]), heads, window) for row in np.flatnonzero(new > 1)]
    return _Plan(order, buckets, prompts)


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
    paged: PagedBatch, rows: Integers, begin: int, first: Integers, needed: Integers, heads: int,
    window: int | None, dtype: torch.dtype,
) -> _Bucket:  # fmt: skip
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
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)
    flat = _pages(pages, heads).to(paged.device)
    return _Bucket(begin, begin + len(rows), flat, mask.to(paged.device)[:, None, None])


def _pages(pages: Integers, heads: int) -> Tensor:
    """Pages [sequences, pages] as pages of single heads, flat in the order sequence, head, page."""
    return torch.from_numpy((pages[:, None] * heads + np.arange(heads)[:, None]).reshape(-1))


def _prompt(paged: PagedBatch, row: int, new: int, heads: int, window: int | None) -> _Prompt:
    begin, keys = int(paged.starts[row]), int(paged.lengths[row])
    pages = mask = None
    if keys > new:
        count = -(-keys // paged.cache.page_size)
        pages = _pages(paged.table[row : row + 1, :count], heads).to(paged.device)
    if keys > new or (window and keys > window):
        mask = torch.ones(new, keys, dtype=torch.bool, device=paged.device).tril_(keys - new)
        if window:
            mask = mask.triu_(keys - new - window + 1)
    return _Prompt(begin, begin + new, keys, pages, mask)


def _decode(plan: _Plan, query: Tensor, paged: PagedBatch, layer: Layer, scaling: float | None) -> Tensor:
    """One query token per sequence; the query heads of one key head stand in the place of query positions."""
    heads, width = query.shape[1], query.shape[3]
    tokens = query[0].transpose(0, 1)
    if plan.order is not None:
        tokens = tokens.index_select(0, plan.order)
    packed = tokens.reshape(len(tokens), layer.heads, -1, width)
    out = []
    for bucket in plan.buckets:
        keys, values = _copies(paged, layer, bucket.pages, bucket.end - bucket.begin)
        asked = packed[bucket.begin : bucket.end]
        out.append(scaled_dot_product_attention(asked, keys, values, attn_mask=bucket.mask, scale=scaling))
    return (out[0] if len(out) == 1 else torch.cat(out)).reshape(-1, heads, width)


def _prefill(part: _Prompt, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    causal = part.mask is None
    out = scaled_dot_product_attention(query, key, value, attn_mask=part.mask, is_causal=causal, scale=scaling)
    return out[0].transpose(0, 1)
