"""Attention for CUDA in half precision: torch's FlashAttention for sequences of different lengths reads the pages through
their table. Not run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workers.engine.paged_batch import Integers, PagedBatch

VARLEN_PAGE = 256  # tokens; the kernel takes multiples of it


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, paged: PagedBatch | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [1, heads, tokens, width] to output [1, tokens, heads, width]: one kernel for all sequences."""
    from torch.nn.attention.varlen import varlen_attn

    if paged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    paged.accept(sliding_window, key, value, kwargs)
    layer = paged.layer(module)
    places = paged.to_device("places", torch.int64)
    for rows, new in zip(layer.by_token(), (key, value), strict=True):
        rows.index_copy_(0, places, new[0].transpose(0, 1))
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
