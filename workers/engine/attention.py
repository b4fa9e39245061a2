"""Attention over a paged KV cache without a dense mask, registered through transformers' AttentionInterface.

transformers' own `sdpa` attends over the whole batch at once, with a mask that rules out all but each
sequence's own part: work and memory grow with the square of the batch. Here every sequence attends to its own
keys only:

- on CPU with torch's scaled dot-product attention: sequences that decode are batched in buckets of similar
  length, prompts run one by one;
- on CUDA in half precision with torch's FlashAttention kernel for sequences of different lengths. Not run on
  a GPU yet.

For models whose layers all have full causal attention. Others keep `sdpa`; see `pick`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

# Continuous batching builds no mask for an implementation with "flash" in its name.
CPU_NAME = "penstock_flash_cpu"
CUDA_NAME = "penstock_flash_cuda"
_SHORTEST_BUCKET = 64


def pick(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The attention implementation for a model; registers ours when it is one of them."""
    if not _is_full_attention(config):
        return "sdpa"
    if device.type == "cpu":
        return _register(CPU_NAME, cpu_attention)
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _has_varlen():
        return _register(CUDA_NAME, cuda_attention)
    return "sdpa"


def _register(name: str, function: Any) -> str:
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, flash_attention_mask)
    return name


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _is_full_attention(config: PreTrainedConfig) -> bool:
    types = getattr(config, "layer_types", None)
    if types is None:
        return getattr(config, "sliding_window", None) is None
    return all(each == "full_attention" for each in types)


def cuda_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, cache: Any = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Write and gather the keys and values through the paged cache, then one kernel for all sequences."""
    from torch.nn.attention.varlen import varlen_attn

    if cache is None:
        kwargs.pop("dropout", None)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    starts_q, longest_q = kwargs["cu_seq_lens_q"].to(torch.int32), kwargs["max_length_q"]
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    query, key, value = (states.squeeze(0).transpose(0, 1).contiguous() for states in (query, key, value))
    out: Any = varlen_attn(
        query, key, value, starts_q, kwargs["cu_seq_lens_k"], longest_q, kwargs["max_length_k"],
        scale=scaling, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return out.unsqueeze(0), None


@dataclass(slots=True)
class _Bucket:
    """Decoding sequences of similar length, padded to the longest of them."""

    rows: Tensor  # their positions in the query
    index: Tensor  # [sequences * longest] places in the key and value cache
    mask: Tensor  # [sequences, 1, 1, longest]


@dataclass(slots=True)
class _Plan:
    """How one forward is cut up; made by its first layer, and the same for the others."""

    buckets: list[_Bucket]
    prompts: list[tuple[int, int, int, int]]  # begin and end in the query, begin and end in the keys


def cpu_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, cache: Any = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [1, heads, tokens, width] to output [1, tokens, heads, width]."""
    if cache is None:
        kwargs.pop("dropout", None)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    layer = module.layer_idx
    allocator = cache.layer_to_allocator[layer]
    keys, values = allocator._kv_token_views[layer]
    read = kwargs["read_index"][allocator.index]
    write = kwargs["write_index"][allocator.index]
    keys.index_copy_(0, write, key[0].transpose(0, 1))
    values.index_copy_(0, write, value[0].transpose(0, 1))
    starts_q, starts_k = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"][allocator.layer_type]
    if layer == 0:
        cache.penstock_plan = _plan(starts_q, starts_k, read)
    plan: _Plan = cache.penstock_plan
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for bucket in plan.buckets:
        out[bucket.rows] = _decode(bucket, query, keys, values, scaling)
    for begin, end, begin_k, end_k in plan.prompts:
        if read.numel():
            places = read[begin_k:end_k]
            own = (keys[places].transpose(0, 1)[None], values[places].transpose(0, 1)[None])
        else:  # nothing but whole prompts in this batch: their keys are all here
            own = (key[:, :, begin:end], value[:, :, begin:end])
        out[begin:end] = _prefill(query[:, :, begin:end], *own, scaling)
    return out[None], None


def _plan(starts_q: Tensor, starts_k: Tensor, read: Tensor) -> _Plan:
    lengths_q, lengths_k = starts_q.diff(), starts_k.diff()
    decoding = (lengths_q == 1) & bool(read.numel())
    rows = decoding.nonzero().squeeze(1)
    sizes = torch.ceil(torch.log2(lengths_k[rows].clamp(min=_SHORTEST_BUCKET).float())).int()
    buckets = []
    for size in sorted(set(sizes.tolist())):
        members = rows[sizes == size]
        begins, lengths = starts_k[:-1][members].long(), lengths_k[members].long()
        steps = torch.arange(int(lengths.max()))
        places = torch.minimum(begins[:, None] + steps, (begins + lengths - 1)[:, None])
        mask = (steps < lengths[:, None])[:, None, None, :]
        buckets.append(_Bucket(starts_q[:-1][members].long(), read[places].reshape(-1), mask))
    q, k = starts_q.tolist(), starts_k.tolist()
    prompts = [(q[at], q[at + 1], k[at], k[at + 1]) for at in (~decoding).nonzero().squeeze(1).tolist()]
    return _Plan(buckets, prompts)


def _decode(bucket: _Bucket, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
    """One query token per sequence; the query heads of one key head stand in the place of query positions."""
    heads, width = query.shape[1], query.shape[3]
    count = bucket.rows.shape[0]
    own = [
        states.index_select(0, bucket.index).view(count, -1, *states.shape[1:]).transpose(1, 2)
        for states in (keys, values)
    ]
    packed = query[0].transpose(0, 1).index_select(0, bucket.rows).view(count, keys.shape[1], -1, width)
    out = scaled_dot_product_attention(packed, own[0], own[1], attn_mask=bucket.mask, scale=scaling)
    return out.reshape(count, heads, width)


def _prefill(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """A prompt, or the next part of one: causal from the end of the keys."""
    group, length, length_k = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    if length == length_k:
        out = scaled_dot_product_attention(query, key, value, is_causal=length > 1, scale=scaling)
    else:
        mask = torch.ones(length, length_k, dtype=torch.bool).tril(length_k - length)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out[0].transpose(0, 1)
