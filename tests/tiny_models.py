"""Tiny random models, built on the spot: real architectures and a real tokenizer, small enough for every test run.

Weights are drawn wide, so that greedy answers wander through the vocabulary instead of repeating one token.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

CONTEXT = 1024
torch.set_num_threads(1)  # the models are too small to share among threads, and test machines are busy
END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Every byte is one token; four marks for chat."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: at for at, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|user|>", "<|assistant|>", "<|system|>", END]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def fast_tokenizer() -> PreTrainedTokenizerFast:
    """The same as a transformers tokenizer, with a chat template."""
    source = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END)
    source.chat_template = CHAT_TEMPLATE
    return source


_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
_MIXED = ["sliding_attention", "full_attention"]
#: Family: configuration, seed, and what is its own. The windows are shorter than most prompts of the tests.
FAMILIES: dict[str, tuple[type[PreTrainedConfig], int, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, 20, {}),
    "qwen3": (transformers.Qwen3Config, 21, {}),
    "mistral": (transformers.MistralConfig, 22, {"sliding_window": 40}),
    "gemma": (transformers.GemmaConfig, 23, {}),
    "gemma3": (transformers.Gemma3TextConfig, 24, {"sliding_window": 40, "layer_types": _MIXED}),
    "gpt2": (transformers.GPT2Config, 25, {"num_key_value_heads": 4}),
    "mixtral": (transformers.MixtralConfig, 26, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        27,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    # Not batched: a cap on the scores, an attention of its own, no attention in some layers.
    "gemma2": (transformers.Gemma2Config, 28, {"sliding_window": 40, "layer_types": _MIXED}),
    "bloom": (transformers.BloomConfig, 29, {}),
}


@cache
def tiny_model(family: str, ends: bool = True, head_dim: int = 16) -> Any:
    """A random fp32 model in eval mode; one that never `ends` has no end-of-sequence token."""
    end = byte_tokenizer().token_to_id(END)
    config_class, seed, own = FAMILIES[family]
    ids = {"eos_token_id": end if ends else None, "bos_token_id": None, "pad_token_id": None}
    config: Any = config_class(
        vocab_size=end + 1, initializer_range=0.3, **ids, **(_SHAPE | {"head_dim": head_dim} | own)
    )
    torch.manual_seed(seed)
    build: Any = transformers.AutoModelForCausalLM.from_config  # untyped
    return build(config, attn_implementation="eager").eval()
