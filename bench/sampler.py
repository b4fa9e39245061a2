"""What choosing the next tokens costs, by kind of sampling, beside the forward that it follows.

Logits are normal with a standard deviation of 3, which is flatter than what most language models give: at a vocabulary of
152,064 the nucleus of 0.95 has some 13,000 tokens. An even flatter distribution is the worst case of top_p.

    python bench/sampler.py --vocabulary 152064 --rows 1 16 64
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer, models

from tasks.sampling import Sampling
from workers.engine.base import Request
from workers.engine.sampler import Sampler
from workers.engine.sequence import LiveSequence
from workers.engine.vocabulary import Vocabulary

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 50": {"top_k": 50},
    "min_p 0.05": {"min_p": 0.05},
    "penalties": {"temperature": 0.0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "5 log probabilities": {"temperature": 0.0, "logprobs": 5},
    "top_p 0.95, flat": {"top_p": 0.95},
}


def sequences(tokenizer: Tokenizer, rows: int, vocabulary: int, sampling: dict[str, Any]) -> list[LiveSequence]:
    """Sequences with 500 tokens of prompt and 100 of answer."""
    made = []
    for row in range(rows):
        prompt, done = (torch.randint(vocabulary, (count,)).tolist() for count in (500, 100))
        request = Request(str(row), prompt, Sampling(max_tokens=10**6, seed=row, **sampling), done=done)
        made.append(LiveSequence(request, tokenizer, ()))
    return made


def measure(kind: str, rows: int, vocabulary: int, rounds: int, device: str) -> float:
    """Milliseconds of one step, median."""
    torch.manual_seed(0)
    words = models.WordLevel({f"w{token}": token for token in range(vocabulary)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    live = sequences(tokenizer, rows, vocabulary, KINDS[kind])
    sampler = Sampler(Vocabulary(tokenizer))
    spread = 0.01 if "flat" in kind else 3.0
    took = []
    for _ in range(rounds + 1):
        logits = torch.randn(rows, vocabulary, device=device) * spread
        if device != "cpu":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        sampler.choose(logits, live)
        took.append((time.perf_counter() - begin) * 1000)
    return statistics.median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152064, help="default 152064, that of Qwen2.5 and Qwen3")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 16, 64], help="sequences in a step (default 1 16 64)"
    )
    parser.add_argument("--rounds", type=int, default=10, help="steps to time (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"ms per step at a vocabulary of {options.vocabulary}, {options.threads} thread(s), {options.device}")
    print("| sampling | " + " | ".join(f"{rows} rows" for rows in options.rows) + " |")
    print("|---|" + "---|" * len(options.rows))
    for kind in KINDS:
        cells = [measure(kind, rows, options.vocabulary, options.rounds, options.device) for rows in options.rows]
        print(f"| {kind} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
