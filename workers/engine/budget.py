"""How much a worker runs at once, and the size of the KV cache for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from workers.engine import placement
from workers.engine.registry import EngineSpec

# On a CPU a forward over more tokens than this would hold up everybody's next token.
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 512, 4096
CPU_KV_SHARE, CUDA_KV_SHARE = 0.2, 0.85  # of what is free; on a CPU copies of keys and values may take as much again
CPU_TYPICAL_LEN = 1024  # on a CPU the cache holds this much of every sequence; the scheduler copes with longer ones
LEAST_CONTEXT = 512  # a context that nobody named does not shrink below this
PAGE_SIZE = 32


@dataclass(frozen=True, slots=True)
class Budget:
    """How much runs at once: sequences, tokens in the KV cache, and tokens that one forward computes."""

    max_num_seqs: int
    kv_tokens: int
    max_batch_tokens: int
    page_size: int = PAGE_SIZE


def plan_budget(spec: EngineSpec, model: Any, max_model_len: int) -> Budget:
    """The size of the KV cache of a transformers model."""
    free, per_token = placement.free_memory(model), kv_bytes_per_token(model)
    return size_cache(spec, model.device, free, per_token, max_model_len)


def size_cache(spec: EngineSpec, device: torch.device, free: int, per_token: int, max_model_len: int) -> Budget:
    """The size of a KV cache: what the sequences can use, within what the device can spare of its free bytes.

    A context that was asked for is a promise, on every worker of the model alike: one that does not fit is a
    `ValueError`. A context that nobody named shrinks to what there is, within reason.
    """
    cuda = device.type == "cuda"
    typical = max_model_len if cuda else min(max_model_len, CPU_TYPICAL_LEN)
    wanted = max(spec.max_num_seqs * typical, max_model_len + PAGE_SIZE)
    affordable = int(free * (CUDA_KV_SHARE if cuda else CPU_KV_SHARE)) // per_token
    least = min(max_model_len, spec.max_model_len or LEAST_CONTEXT)
    if affordable < least + PAGE_SIZE:
        raise ValueError(
            f"a context of {least} tokens needs {(least + PAGE_SIZE) * per_token / 2**20:.0f} MiB of KV cache, and "
            f"{affordable * per_token / 2**20:.0f} MiB of {device} may be used for it: free memory"
            + (", or set a smaller max_model_len" if spec.max_model_len else "")
        )
    tokens = min(wanted, affordable)
    spec.say(f"KV cache for {tokens} tokens, {tokens * per_token / 2**20:.0f} MiB")
    return Budget(spec.max_num_seqs, tokens, CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS, PAGE_SIZE)


def kv_bytes_per_token(model: Any) -> int:
    """What a token costs in the caches of all layers."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    if heads is None:
        raise ValueError(f"{text.model_type} models keep no keys and values of attention heads, and cannot be served")
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * width * model.dtype.itemsize)
