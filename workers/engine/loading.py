"""From a folder or a hub id to a model that is ready to run: weights, tokenizer and limits."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from workers.engine import placement, quantization
from workers.engine.base import ModelProfile
from workers.engine.progress import weights_told
from workers.engine.registry import EngineSpec

DEFAULT_MAX_MODEL_LEN = 4096  # for a model whose configuration names none


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a model without its weights. `eos` are the ids that end an answer."""

    config: Any
    tokenizer: Tokenizer
    profile: ModelProfile
    eos: frozenset[int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory; the rest is its description's."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    profile: ModelProfile
    eos: frozenset[int]


def load(spec: EngineSpec) -> Loaded:
    """Load weights and tokenizer; the first use of a hub id downloads them."""
    set_threads()
    device = torch.device(_device(spec.device))
    if spec.gpus and spec.device == "auto" and device.type != "cuda":
        raise ValueError("gpus is set, and CUDA finds no GPU here: leave gpus out, or set device = 'cpu'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {spec.device!r}, and CUDA finds no GPU here: leave device out, or set it to 'cpu'")
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
    dtype = dtype_of(spec.dtype)
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
    known = _describe(model.config, model.generation_config, source, max_model_len)
    return Loaded(model, known.tokenizer, known.profile, known.eos)


def describe_files(path: str, max_model_len: int | None = None) -> Description:
    """The same from the files alone, for an engine that loads the weights itself."""
    source: Any = AutoTokenizer.from_pretrained(path)
    config: Any = AutoConfig.from_pretrained(path)
    try:
        generation: Any = GenerationConfig.from_pretrained(path)
    except OSError:  # there is no such file
        generation = GenerationConfig.from_model_config(config)
    return _describe(config, generation, source, max_model_len)


def _describe(config: Any, generation: Any, source: Any, max_model_len: int | None) -> Description:
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or DEFAULT_MAX_MODEL_LEN
    limit = min(longest, max_model_len or longest)
    tokenizer, profile = profile_of(source, limit, text.vocab_size, generation)
    return Description(config, tokenizer, profile, end_tokens(generation.eos_token_id, source))


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


def dtype_of(asked: str) -> Any:
    """The torch dtype of that name; "auto" stays."""
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
