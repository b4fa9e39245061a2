"""The demo model's shape and its first weights.

Owns: the Llama configuration and the initialisation. Promises: an ordinary ``LlamaForCausalLM`` with full
attention and no remote code; the same seed gives the same weights. Must not: know about skills or training.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.demo.tokenizer import CONTEXT, END, NUMBERS, PAD, vocabulary

INIT_STD = 0.04
NUMBER_SCALE = 0.2


def build_config(hidden: int = 128, layers: int = 5, feed_forward: int = 384, heads: int = 4) -> LlamaConfig:
    tokens = vocabulary()
    return LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        bos_token_id=None,
        eos_token_id=tokens[END],
        pad_token_id=tokens[PAD],
        dtype="float32",
    )


def number_codes() -> torch.Tensor:
    """A row for each number: one-hot digits, and waves of its value for order and size.

    Random rows would leave a thousand numbers to be learnt one by one. With digits in the rows, one step of a
    count is one rule, and so is one addition. Training that moves them row by row loses this order.
    """
    value = torch.arange(NUMBERS, dtype=torch.float32)
    digits = [torch.eye(10)[(value // unit % 10).long()] for unit in (100, 10, 1)]
    angles = [2 * math.pi * value / period for period in (10, 20, 100, 200, 1000, 2 * NUMBERS)]
    waves = [wave(angle) for angle in angles for wave in (torch.cos, torch.sin)]
    return torch.cat([*digits, 0.8 * torch.stack(waves, dim=1)], dim=1)


@cache
def number_rows() -> torch.Tensor:
    """Each number's row in the embedding table."""
    tokens = vocabulary()
    return torch.tensor([tokens[str(number)] for number in range(NUMBERS)])


def build_model(seed: int, config: LlamaConfig | None = None) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config or build_config())
    codes = number_codes()
    rows = number_rows()
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table[rows, : codes.shape[1]] = NUMBER_SCALE * codes
        # A digit is also a letter of "007": it keeps its random part; the other numbers need none.
        table[rows[10:], codes.shape[1] :] *= 0.25
    return model
