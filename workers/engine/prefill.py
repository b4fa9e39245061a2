"""Attention of a prompt, or of the next part of one, to its own keys: one sequence at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from workers.engine.paged_batch import Layer, PagedBatch, head_pages


@dataclass(slots=True)
class Prompt:
    """A prompt, or the next part of one. `pages` is None where all of its keys are of this forward."""

    begin: int
    end: int
    keys: int
    pages: Tensor | None  # [heads * pages]
    mask: Tensor | None  # to be added to the scores; None: plainly causal

    def look_up(self, paged: PagedBatch, layer: Layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Its keys and its values, [1, heads, keys, width]."""
        if self.pages is None:
            return key[:, :, self.begin : self.end], value[:, :, self.begin : self.end]
        keys, values = paged.copies(layer, self.pages, 1)
        return keys[:, :, : self.keys], values[:, :, : self.keys]


def plan_prompt(paged: PagedBatch, row: int, new: int, heads: int, window: int | None, dtype: torch.dtype) -> Prompt:
    begin, keys = int(paged.starts[row]), int(paged.lengths[row])
    pages = mask = None
    if keys > new:
        count = -(-keys // paged.cache.page_size)
        pages = head_pages(paged.table[row : row + 1, :count], heads).to(paged.device)
    if keys > new or (window and keys > window):
        seen = torch.ones(new, keys, dtype=torch.bool, device=paged.device).tril_(keys - new)
        if window:
            seen = seen.triu_(keys - new - window + 1)
        mask = torch.zeros(new, keys, dtype=dtype, device=paged.device).masked_fill_(~seen, -torch.inf)
    return Prompt(begin, begin + new, keys, pages, mask)


def prefill(part: Prompt, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    causal = part.mask is None
    out = scaled_dot_product_attention(query, key, value, attn_mask=part.mask, is_causal=causal, scale=scaling)
    return out[0].transpose(0, 1)
