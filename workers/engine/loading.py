"""From a folder or a hub id to a model that is ready to run: weights, tokenizer, limits and the size of the
KV cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from workers.engine.base import ModelProfile
from workers.engine.paged import Budget
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
    spec.say(f"loading the weights of {spec.path} to {device}, dtype {spec.dtype}")
    quiet: Any = logging.disable_progress_bar  # untyped
    quiet()
    model: Any = AutoModelForCausalLM.from_pretrained(spec.path, dtype=_dtype(spec.dtype))
    model = model.to(device).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    spec.say(f"loaded {parameters / 1e6:.1f}M parameters as {model.dtype}")
    return describe(model, source, spec.max_model_len)


def describe(model: Any, source: Any, max_model_len: int | None = None) -> Loaded:
    """A loaded model with what the API must know of it. `source` is a transformers tokenizer."""
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
    config = model.generation_config
    tokenizer, profile = profile_of(source, min(longest, max_model_len or longest), text.vocab_size, config)
    return Loaded(model, tokenizer, profile, end_tokens(config.eos_token_id, source))


def profile_of(source: Any, max_model_len: int, vocab_size: int, config: Any) -> tuple[Tokenizer, ModelProfile]:
    """What the API must know of a model, and its tokenizer. `config` has what generation_config.json says."""
    tokenizer = _backend(source)
    profile = ModelProfile(
        tokenizer=tokenizer.to_str(),
        chat_template=_chat_template(source),
        special_tokens={name: text for name, text in source.special_tokens_map.items() if isinstance(text, str)},
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        sampling=_recommended(config),
    )
    return tokenizer, profile


def plan_budget(spec: EngineSpec, model: Any, max_model_len: int) -> Budget:
    """The size of the KV cache of a transformers model."""
    return size_cache(spec, model.device, _kv_bytes_per_token(model), max_model_len)


def size_cache(spec: EngineSpec, device: torch.device, per_token: int, max_model_len: int) -> Budget:
    """The size of the KV cache: what the sequences can use, within what the device can spare.

    A context that was asked for is a promise, on every worker of the model alike: one that does not fit is a
    `ValueError`. A context that nobody named shrinks to what there is, within reason.
    """
    cuda = device.type == "cuda"
    typical = max_model_len if cuda else min(max_model_len, CPU_TYPICAL_LEN)
    wanted = max(spec.max_num_seqs * typical, max_model_len + PAGE_SIZE)
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
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


def end_tokens(configured: int | list[int] | None, source: Any) -> frozenset[int]:
    """Chat models often end a turn with another token than the one their tokenizer calls `eos`; both end an
    answer.
    """
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
