"""From a folder or a hub id to a model that is ready to run: weights, tokenizer, limits and the size of the
KV cache.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from workers.engine import placement, quantization
from workers.engine.base import ModelProfile
from workers.engine.paged import Budget
from workers.engine.progress import weights_told
from workers.engine.registry import EngineSpec

DEFAULT_MAX_MODEL_LEN = 4096  # for a model whose configuration names none
# On a CPU a forward over more tokens than this would hold up everybody's next token.
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 512, 4096
CPU_KV_SHARE, CUDA_KV_SHARE = 0.3, 0.85
CPU_TYPICAL_LEN = 1024  # on a CPU the cache holds this much of every sequence; the scheduler copes with longer ones
LEAST_CONTEXT = 512  # a context that nobody named does not shrink below this
PAGE_SIZE = 32


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory. `eos` are the ids that end an answer."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    profile: ModelProfile
    eos: frozenset[int]


def load(spec: EngineSpec) -> Loaded:
    """Load weights and tokenizer; the first use of a hub id downloads them."""
    set_threads()
    device = torch.device(_device(spec.device))
    spec.say(f"loading the tokenizer of {spec.path}")
    source: Any = AutoTokenizer.from_pretrained(spec.path)
    spec.say(f"loading the weights of {spec.path} to {device}, dtype {spec.dtype}, quantization {spec.quantization}")
    began = time.monotonic()
    with weights_told(spec.say):
        model = _load_weights(spec, device).eval()
    took = time.monotonic() - began
    spec.say(f"loaded {quantization.describe(model)} as {model.dtype} in {took:.1f} s")
    return describe(model, source, spec.max_model_len)


def _load_weights(spec: EngineSpec, device: torch.device) -> Any:
    dtype = _dtype(spec.dtype)
    config: Any = AutoConfig.from_pretrained(spec.path)
    computes_in = config.get_text_config().dtype or torch.float32 if dtype == "auto" else dtype
    scheme = quantization.choose(spec.quantization, config, computes_in)
    # A scheme of None would overwrite the checkpoint's own.
    scheme = {"quantization_config": scheme} if scheme is not None else {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        spec.path, dtype=dtype, device_map=placement.device_map(device, spec.gpus), **scheme
    )
    quantization.check_applied(spec.quantization, model)
    if device.type == "cuda":
        placement.check_placed(model)
    return model


def describe(model: Any, source: Any, max_model_len: int | None = None) -> Loaded:
    """A loaded model with what the API must know of it. `source` is a transformers tokenizer."""
    text = model.config.get_text_config()
    tokenizer = _backend(source)
    longest = getattr(text, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
    profile = ModelProfile(
        tokenizer=tokenizer.to_str(),
        chat_template=_chat_template(source),
        special_tokens={name: text for name, text in source.special_tokens_map.items() if isinstance(text, str)},
        max_model_len=min(longest, max_model_len or longest),
        vocab_size=text.vocab_size,
        sampling=_recommended(model.generation_config),
    )
    return Loaded(model, tokenizer, profile, _end_tokens(model, source))


def plan_budget(spec: EngineSpec, model: Any, max_model_len: int) -> Budget:
    """The size of the KV cache: what the sequences can use, within what the device can spare.

    A context that was asked for is a promise, on every worker of the model alike: one that does not fit is a
    `ValueError`. A context that nobody named shrinks to what there is, within reason.
    """
    cuda = model.device.type == "cuda"
    typical = max_model_len if cuda else min(max_model_len, CPU_TYPICAL_LEN)
    wanted = max(spec.max_num_seqs * typical, max_model_len + PAGE_SIZE)
    free = placement.free_memory(model)
    per_token = _kv_bytes_per_token(model)
    affordable = int(free * (CUDA_KV_SHARE if cuda else CPU_KV_SHARE)) // per_token
    least = min(max_model_len, spec.max_model_len or LEAST_CONTEXT)
    if affordable < least + PAGE_SIZE:
        raise ValueError(
            f"a context of {least} tokens needs {(least + PAGE_SIZE) * per_token / 2**20:.0f} MiB of KV cache, and "
            f"{affordable * per_token / 2**20:.0f} MiB of {model.device} may be used for it: free memory"
            + (", or set a smaller max_model_len" if spec.max_model_len else "")
        )
    tokens = min(wanted, affordable)
    spec.say(f"KV cache for {tokens} tokens, {tokens * per_token / 2**20:.0f} MiB")
    return Budget(spec.max_num_seqs, tokens, CUDA_BATCH_TOKENS if cuda else CPU_BATCH_TOKENS, PAGE_SIZE)


def set_threads() -> None:
    """Let torch use the threads that the environment grants; without a word there, or with 0, torch decides."""
    for name in ("PENSTOCK_THREADS", "OMP_NUM_THREADS"):
        threads = int(os.environ.get(name, "").split(",")[0] or 0)  # OpenMP takes a list, one number per nesting
        if threads > 0:
            torch.set_num_threads(threads)
            return


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(asked: str) -> Any:
    if asked == "auto":
        return asked
    dtype = getattr(torch, asked, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be auto or a torch dtype such as bfloat16, not {asked!r}")
    return dtype


def _backend(source: Any) -> Tokenizer:
    backend = getattr(source, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"the tokenizer {type(source).__name__} has no tokenizer.json, and the API needs one")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _chat_template(source: Any) -> str | None:
    template = source.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _end_tokens(model: Any, source: Any) -> frozenset[int]:
    """Chat models often end a turn with another token than the one their tokenizer calls `eos`; both end an
    answer.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, source.eos_token_id] if token is not None)


def _recommended(config: Any) -> dict[str, float]:
    """What generation_config.json says of sampling; transformers leaves at None what the file does not name."""
    penalty = {"repetition_penalty": config.repetition_penalty}
    asked = {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    values = penalty | ({"temperature": 0.0} if config.do_sample is False else asked)
    return {name: value for name, value in values.items() if value is not None}


def _kv_bytes_per_token(model: Any) -> int:
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * width * model.dtype.itemsize)
