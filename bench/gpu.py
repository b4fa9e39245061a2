"""Our engine on a GPU, beside what the GPU could do at best: tokens/s by number of streams, and the floor of a step.

A random model of real size; its answers are nonsense, the work is the same. The floor of a decoding step with B streams of
L tokens each is the longer of two times:

- reading: (bytes of the weights that a token needs + B * L * bytes of keys and values per token) / memory bandwidth;
- computing: B * (2 * numbers in those weights + 4 * L * layers * heads * width) / rate of matrix products.

Embeddings are looked up, not multiplied, and count only where they are the output layer too. First a check that the model
on the GPU answers as its plain forward does (`workers/engine/check.py`); a model that fails it is not measured as batched.

    python bench/gpu.py --model llama-3.2-1b qwen3-8b --streams 1 32 128 256
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from contenders import Contender, Manager, Ours, Sequential, Static
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

_NO_END: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama-3.2-1b": LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, max_position_embeddings=8192, tie_word_embeddings=True, **_NO_END,
    ),
    "qwen3-8b": Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=12288, vocab_size=151936, max_position_embeddings=8192, tie_word_embeddings=False, **_NO_END,
    ),
    "tiny": Qwen3Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=128, vocab_size=4096, max_position_embeddings=8192, tie_word_embeddings=False, **_NO_END,
    ),
}  # fmt: skip
#: Dense bf16 matrix products and memory bandwidth, from the makers' data sheets: TFLOP/s and TB/s.
DEVICES = {
    "H200": (989.0, 4.8),
    "H100": (989.0, 3.35),
    "A100": (312.0, 2.0),
    "L40S": (362.0, 0.864),
    "L4": (121.0, 0.3),
}
PROMPT, NEW = 128, 256


@dataclass(frozen=True)
class Floor:
    """What a token costs at least, by the arithmetic above."""

    weights: int  # numbers that a token is multiplied with
    kv_bytes: int  # per token of context
    attention: int  # operations per token of context
    flops: float
    bandwidth: float

    def seconds(self, streams: int, context: float, width: int) -> float:
        """One decoding step; `width` is the bytes of a number."""
        reading = (self.weights * width + streams * context * self.kv_bytes) / self.bandwidth
        computing = streams * (2 * self.weights + context * self.attention) / self.flops
        return max(reading, computing)


def floor_of(model: Any, tflops: float, terabytes: float) -> Floor:
    config = model.config
    total = sum(parameter.numel() for parameter in model.parameters())
    looked_up = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return Floor(total - looked_up, kv_bytes, attention, tflops * 1e12, terabytes * 1e12)


def build(name: str, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype).eval()


def rates(each: Contender, streams: int, rounds: int, vocabulary: int) -> list[float]:
    """Tokens/s of each round, after one that warms up."""
    rng = random.Random(streams)
    found = []
    for number in range(rounds + 1):
        prompts = [[rng.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(streams)]
        run = each.run(prompts, NEW)
        if number:
            found.append(run.rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, nargs="+", default=["llama-3.2-1b", "qwen3-8b"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128, 256], help="default 1 32 128 256")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each (default 2)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script (default cuda)")
    parser.add_argument("--dtype", default="bfloat16", help="default bfloat16")
    parser.add_argument("--tflops", type=float, help="matrix products of the device; known for " + ", ".join(DEVICES))
    parser.add_argument("--terabytes", type=float, help="memory bandwidth of the device, TB/s")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    options = parser.parse_args()
    label = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    known = next((DEVICES[name] for name in DEVICES if name in re.split(r"[\s-]", label)), (None, None))
    tflops, terabytes = options.tflops or known[0], options.terabytes or known[1]
    if tflops is None or terabytes is None:
        parser.error(f"nothing is known of {label}: give --tflops and --terabytes")
    most = max(options.streams)
    print(f"{label}, torch {torch.__version__}, {options.dtype}, prompts of {PROMPT} and answers of {NEW} tokens")
    print(f"floors by {tflops} TFLOP/s and {terabytes} TB/s")
    print(
        "| model | streams | engine | tokens/s, median (spread) | ms per step | floor ms | share of the floor's rate |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.model:
        for kind in (Ours, Manager, Static, Sequential):
            if kind.name in options.without:
                continue
            model = build(name, options.device, getattr(torch, options.dtype))
            floor = floor_of(model, tflops, terabytes)
            each = kind(model, most, most * (PROMPT + NEW + 256))
            if isinstance(each, Ours):
                print(f"<!-- {name}: {floor}, {type(each.engine._backend).__name__} -->")
            for streams in options.streams if kind is not Sequential else options.streams[:1]:
                found = rates(each, streams, options.rounds, model.config.vocab_size)
                best = floor.seconds(streams, PROMPT + NEW / 2, model.dtype.itemsize)
                rate = statistics.median(found)
                print(
                    f"| {name} | {streams} | {kind.name} | {rate:.0f} ({min(found):.0f}-{max(found):.0f}) "
                    f"| {streams / rate * 1000:.2f} | {best * 1000:.2f} | {rate * best / streams:.0%} |",
                    flush=True,
                )
            each.close()
            del each, model
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
