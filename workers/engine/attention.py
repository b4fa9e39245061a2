"""Attention over a paged KV cache, registered through transformers' AttentionInterface.

Keys and values lie in pages of a fixed number of tokens; a table names the pages of every sequence. Each sequence
attends to its own pages only, so there is no mask over the whole batch, and no work for it:

- `gather_attention` copies the pages together and calls torch's scaled dot-product attention. Sequences that decode are
  batched in buckets of similar length, prompts run one by one. It runs anywhere, and is what a CPU uses.
- `varlen_attention` hands pages and table to torch's FlashAttention kernel for sequences of different lengths. For CUDA
  in half precision. Not run on a GPU yet.

Both know causal attention, full or within a sliding window, and refuse what else a model may ask of its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

GATHER, VARLEN = "penstock_gather", "penstock_varlen"
VARLEN_PAGE = 256  # tokens; the kernel takes multiples of it

Integers = NDArray[np.int64]

#: What transformers passes to every attention function; it changes nothing, or the sampler and the cache see to it.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "cache_position", "layer_idx", "output_router_logits"}


class Unsupported(ValueError):
    """The model asks something of its attention that ours does not know."""


def register(device: torch.device, dtype: torch.dtype) -> str:
    """Make our attention known to transformers; the name of the one for this device."""
    fused = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    name, function = (VARLEN, varlen_attention) if fused else (GATHER, gather_attention)
    # No mask function is registered with it: transformers then builds no masks at all.
    AttentionInterface.register(name, function)
    return name


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's part of the cache: by token [places, heads, width], and by page [pages, size, heads, width]."""

    keys: Tensor
    values: Tensor
    key_pages: Tensor
    value_pages: Tensor


@dataclass(slots=True)
class PagedBatch:
    """The sequences of one forward: which of its tokens are theirs, and where their keys and values are.

    The model gets it as the keyword `paged` and hands it down to every layer. All arrays are on the host.
    """

    layers: dict[int, Layer]
    page_size: int
    device: torch.device
    starts: Integers  # [sequences + 1] where the tokens of each begin, and the end of the last one's
    lengths: Integers  # [sequences] keys of each, those of this forward included
    table: Integers  # [sequences, pages] the pages of each in order; unused places are 0, a page that is never written
    places: Integers  # [tokens] where in the cache the keys and values of each token go
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made by the first layer that asks, and the same for the others."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def to_device(self, name: str, dtype: torch.dtype) -> Tensor:
        """One of the arrays on the device."""
        array: Integers = getattr(self, name)
        tensor: Tensor = self.once((name, dtype), lambda: torch.from_numpy(array).to(self.device, dtype))
        return tensor

    def write(self, layer: Layer, key: Tensor, value: Tensor) -> None:
        """Keep the keys and values [1, heads, tokens, width] of this forward's tokens."""
        places = self.to_device("places", torch.int64)
        layer.keys.index_copy_(0, places, key[0].transpose(0, 1))
        layer.values.index_copy_(0, places, value[0].transpose(0, 1))


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, paged: PagedBatch | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [1, heads, tokens, width] to output [1, tokens, heads, width]: one kernel for all sequences."""
    from torch.nn.attention.varlen import varlen_attn

    if paged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    paged.once(("asked", sliding_window), lambda: _refuse_more_than_causal(key, value, kwargs))
    layer = paged.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    paged.write(layer, key, value)
    ends: Integers = paged.once("ends", lambda: np.concatenate(([0], paged.lengths.cumsum())))
    ends_on_device: Tensor = paged.once("ends on device", lambda: torch.from_numpy(ends).to(paged.device, torch.int32))
    longest = paged.once("longest", lambda: (int(np.diff(paged.starts).max()), int(paged.lengths.max())))
    out: Any = varlen_attn(
        query[0].transpose(0, 1).contiguous(), layer.key_pages, layer.value_pages,
        paged.to_device("starts", torch.int32), ends_on_device, *longest,
        scale=scaling, window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
        seqused_k=paged.to_device("lengths", torch.int32), block_table=paged.to_device("table", torch.int32),
    )  # fmt: skip
    return out.unsqueeze(0), None


def gather_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, paged: PagedBatch | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [1, heads, tokens, width] to output [1, tokens, heads, width]."""
    if paged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    paged.once(("asked", sliding_window), lambda: _refuse_more_than_causal(key, value, kwargs))
    layer = paged.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    paged.write(layer, key, value)
    plan: _Plan = paged.once(sliding_window, lambda: _plan(paged, sliding_window, query.dtype))
    if plan.whole is not None:
        return _decode(plan.whole, query, layer, scaling)[None], None
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for bucket in plan.buckets:
        out[bucket.tokens] = _decode(bucket, query.index_select(2, bucket.tokens), layer, scaling)
    for part in plan.prompts:
        keys, values = part.look_up(layer, key, value)
        out[part.begin : part.end] = _prefill(part, query[:, :, part.begin : part.end], keys, values, scaling)
    return out[None], None


def _refuse_more_than_causal(key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
    asked = {name for name, given in kwargs.items() if not (given is None or given is False)}
    unknown = sorted(asked - _HARMLESS)
    if unknown:
        raise Unsupported(f"its attention uses {', '.join(unknown)}")
    if key.shape != value.shape:
        raise Unsupported("its keys and values have different widths")


@dataclass(slots=True)
class _Bucket:
    """Decoding sequences of similar length, padded to whole pages of the longest of them."""

    tokens: Tensor  # their tokens
    pages: Tensor  # [sequences * pages]
    mask: Tensor  # [sequences, 1, 1, keys], to be added to the scores


@dataclass(slots=True)
class _Prompt:
    """A prompt, or the next part of one. `pages` is None where all of its keys are of this forward."""

    begin: int
    end: int
    keys: int
    pages: Tensor | None
    mask: Tensor | None  # None: plainly causal

    def look_up(self, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Its keys and its values, [1, heads, keys, width]."""
        if self.pages is None:
            return key[:, :, self.begin : self.end], value[:, :, self.begin : self.end]
        found = [
            pages.index_select(0, self.pages).flatten(0, 1)[: self.keys].transpose(0, 1)[None]
            for pages in (layer.key_pages, layer.value_pages)
        ]
        return found[0], found[1]


@dataclass(slots=True)
class _Plan:
    """How one forward is cut up. `whole` is the one bucket that holds every token, in order."""

    buckets: list[_Bucket]
    prompts: list[_Prompt]
    whole: _Bucket | None


def _plan(paged: PagedBatch, window: int | None, dtype: torch.dtype) -> _Plan:
    new = np.diff(paged.starts)
    rows = np.flatnonzero(new == 1)
    # With a window, pages that no key is needed of are left out.
    first = np.maximum(paged.lengths - window, 0) // paged.page_size if window else np.zeros_like(paged.lengths)
    needed = -(-paged.lengths // paged.page_size) - first
    sizes = np.frexp(np.maximum(needed[rows] - 1, 1))[1]  # the same for 1 and 2 pages, 3 and 4, 5 to 8 and so on
    buckets = [_bucket(paged, rows[sizes == size], first, needed, window, dtype) for size in np.unique(sizes)]
    whole = buckets[0] if len(buckets) == 1 and len(rows) == len(new) else None
    prompts = [_prompt(paged, int(row), int(new[row]), window) for row in np.flatnonzero(new > 1)]
    return _Plan(buckets, prompts, whole)


def _bucket(
    paged: PagedBatch, rows: Integers, first: Integers, needed: Integers, window: int | None, dtype: torch.dtype
) -> _Bucket:
    count, begin, lengths = int(needed[rows].max()), first[rows, None], paged.lengths[rows, None]
    places = begin + np.arange(count)
    pages = paged.table[rows[:, None], np.minimum(places, paged.table.shape[1] - 1)]
    keys = begin * paged.page_size + np.arange(count * paged.page_size)
    seen = keys < lengths
    if window:
        seen &= keys >= lengths - window
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)
    tokens, flat = (torch.from_numpy(each).to(paged.device) for each in (paged.starts[rows], pages.reshape(-1)))
    return _Bucket(tokens, flat, mask.to(paged.device)[:, None, None])


def _prompt(paged: PagedBatch, row: int, new: int, window: int | None) -> _Prompt:
    begin, keys = int(paged.starts[row]), int(paged.lengths[row])
    pages = mask = None
    if keys > new:
        count = -(-keys // paged.page_size)
        pages = torch.from_numpy(paged.table[row, :count]).to(paged.device)
    if keys > new or (window and keys > window):
        mask = torch.ones(new, keys, dtype=torch.bool, device=paged.device).tril_(keys - new)
        if window:
            mask = mask.triu_(keys - new - window + 1)
    return _Prompt(begin, begin + new, keys, pages, mask)


def _decode(bucket: _Bucket, query: Tensor, layer: Layer, scaling: float | None) -> Tensor:
    """One query token per sequence; the query heads of one key head stand in the place of query positions."""
    heads, count, width = query.shape[1:]
    keys, values = (
        pages.index_select(0, bucket.pages).view(count, -1, *pages.shape[2:]).transpose(1, 2)
        for pages in (layer.key_pages, layer.value_pages)
    )
    packed = query[0].transpose(0, 1).reshape(count, keys.shape[1], -1, width)
    out = scaled_dot_product_attention(packed, keys, values, attn_mask=bucket.mask, scale=scaling)
    return out.reshape(count, heads, width)


def _prefill(part: _Prompt, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    causal = part.mask is None
    out = scaled_dot_product_attention(query, key, value, attn_mask=part.mask, is_causal=causal, scale=scaling)
    return out[0].transpose(0, 1)
