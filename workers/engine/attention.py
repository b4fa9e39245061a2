"""Our attention over a paged KV cache, made known to transformers: which function is for which device."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from workers.engine.gather import gather_attention
from workers.engine.varlen import varlen_attention

GATHER, VARLEN = "penstock_gather", "penstock_varlen"


def register(device: torch.device, dtype: torch.dtype) -> str:
    """Make our attention known to transformers; the name of the one for this device."""
    fused = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    name, function = (VARLEN, varlen_attention) if fused else (GATHER, gather_attention)
    # No mask function is registered with it: transformers then builds no masks at all.
    AttentionInterface.register(name, function)
    return name
