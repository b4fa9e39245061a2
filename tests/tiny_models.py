"""Tiny random models, built on the spot: real architectures and a real tokenizer, small enough for every test run.

Weights are drawn wide, so that greedy answers wander through the vocabulary instead of repeating one token.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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


@cache
def tiny_model(family: str, ends: bool = True) -> Any:
    """A random fp32 "llama" or "qwen3" in eval mode; one that never `ends` has no end-of-sequence token."""
    end = byte_tokenizer().token_to_id(END)
    shape: dict[str, Any] = {
        "vocab_size": end + 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": end if ends else None,
        "bos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(20 if family == "llama" else 21)
    model = LlamaForCausalLM(LlamaConfig(**shape)) if family == "llama" else Qwen3ForCausalLM(Qwen3Config(**shape))
    return model.eval()
