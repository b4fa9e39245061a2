"""Our engine beside what one could run instead: tokens/s, time to first token, and what each step costs the host.

All contenders get the same random prompts on the same random model, in rounds that take turns, so that a noisy machine
hits all of them. Answers are greedy and have a fixed length: the work is the same whatever they say.

    python bench/engine.py --streams 1 8 64 --rounds 5 --vllm ~/vllm/bin/python
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from contenders import SHAPES, Contender, Manager, Ours, Prompts, Run, Sequential, Static, Vllm, random_model
from exported import Onnx

#: Name: what each prompt of n streams has, and how many tokens each answer gets.
MIXES = {
    "short": (lambda n: [32] * n, 64),
    "long prompts": (lambda n: [512] * n, 64),
    "skewed": (lambda n: [1200] * (n // 16) + [32] * (n - n // 16), 64),
    "long answers": (lambda n: [32] * n, 400),
    "long contexts": (lambda n: [1500] * n, 64),
}
KV_TOKENS = 131072


def draw(rng: random.Random, mix: str, streams: int, vocabulary: int) -> tuple[Prompts, int]:
    """Prompts that share nothing."""
    lengths, new = MIXES[mix]
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths(streams)], new


@contextmanager
def contenders(options: argparse.Namespace, model: Any) -> Iterator[list[Contender]]:
    """All of them, loaded."""
    most = max(options.streams)
    kinds = {kind.name: kind for kind in (Ours, Manager, Sequential, Static)}
    loaded: list[Contender] = [
        kind(model, most, KV_TOKENS) for name, kind in kinds.items() if name not in options.without
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.vllm:
            model.save_pretrained(folder)
            loaded.append(Vllm(options.vllm, Path(folder), most, KV_TOKENS))
        if options.onnx:
            loaded.insert(1, Onnx(model, Path(folder) / "onnx", most))
        try:
            yield loaded
        finally:
            for each in loaded:
                each.close()


def compare(runs: dict[str, list[Run]]) -> Iterator[str]:
    """Rows of the table: each against the first, which is ours, round by round."""
    ours = next(iter(runs.values()))
    for name, rounds in runs.items():
        rates = sorted(run.rate for run in rounds)
        ratios = sorted(mine.rate / other.rate for mine, other in zip(ours, rounds, strict=True))
        first = statistics.median(statistics.mean(run.first) for run in rounds) * 1000
        spread = f"{statistics.median(rates):.0f} ({rates[0]:.0f}-{rates[-1]:.0f})"
        yield f"{name} | {spread} | {first:.0f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        choices=[*SHAPES, "demo"],
        default="llama-s",
        help="shape of the random model (default llama-s), or demo",
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64], help="requests at once (default 1 8 64)")
    parser.add_argument("--mix", choices=MIXES, nargs="+", default=["short"], help="lengths (default short)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each contender (default 1)")
    parser.add_argument(
        "--vllm", default="", metavar="PYTHON", help="the Python of an environment with vLLM; default: without"
    )
    parser.add_argument("--onnx", action="store_true", help="our engine onnx, too: needs onnxruntime-genai")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = random.Random(options.seed)
    print(f"model {options.model}, {options.threads} thread(s), {options.rounds} rounds, seed {options.seed}")
    print(
        "| mix | streams | engine | tokens/s, median (spread) | TTFT mean ms | ours / it |\n|---|---|---|---|---|---|"
    )
    model = random_model(options.model)
    vocabulary = min(4096, model.config.vocab_size)
    with contenders(options, model) as loaded:
        for mix in options.mix:
            for streams in options.streams:
                runs: dict[str, list[Run]] = {each.name: [] for each in loaded}
                host = []
                for number in range(options.rounds + 1):  # the first one warms up
                    prompts, new = draw(rng, mix, streams, vocabulary)
                    for each in loaded:
                        run = each.run(prompts, new)
                        if number:
                            runs[each.name].append(run)
                        if number and isinstance(each, Ours):
                            host.append(each.host_s / run.tokens * 1e6)
                for row in compare(runs):
                    print(f"| {mix} | {streams} | {row} |", flush=True)
                if host:
                    print(
                        f"| {mix} | {streams} | (ours: host work {statistics.median(host):.0f} µs per token) | | | |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
