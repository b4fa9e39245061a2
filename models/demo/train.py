"""Train the demo model from nothing, on a CPU, from conversations drawn as it goes.

Owns: the curriculum, the batches, the optimiser, the progress lines. Promises: the same arguments and thread count give
the same weights; held-out prompts are never drawn. Must not: judge the result, which is evaluate.py's.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.demo.data import MAX_COUNT, SKILLS, Exchange, draw_count, draw_system
from models.demo.model import build_model
from models.demo.tokenizer import ASSISTANT, END, SYSTEM, USER, save_tokenizer, vocabulary

MIX = {"count": 30, "reverse": 28, "repeat": 8, "arithmetic": 40, "identity": 1.5, "scripts": 1.5, "other": 3}
"""How often each skill is drawn, in parts: sums and words take the most practice, and the fewest tokens."""
POOL = 256
"""Conversations sorted by length together before they are cut into batches."""


@dataclass(frozen=True)
class Sample:
    """One tokenised conversation; ``weights`` is zero wherever the user or the system speaks."""

    tokens: list[int]
    weights: list[float]
    skills: list[int]


def longest_count(progress: float) -> int:
    """Ten numbers for the first 0.4 of a run, all of them after 0.7.

    In a long count nearly every token follows from the one before, and a model that has learnt that much is slow to
    notice that the prompt says which way to go and where to stop. In a short one these are half of what there is.
    """
    grown = min(1.0, max(0.0, (progress - 0.4) / 0.3))
    return round(10 + grown * (MAX_COUNT - 10))


def answer_weights(length: int) -> list[float]:
    """What each token of an answer counts for in the loss.

    A long answer counts for more than a short one, but not in proportion: a sum is two tokens, a count 400. How an
    answer begins and where it ends is decided from the prompt, and most of what lies between follows from itself.
    """
    even = length**-0.5
    return [max(even, 0.5) if place < 8 or place >= length - 2 else even for place in range(length)]


class Sampler:
    """Draws conversations and cuts them into batches of about ``budget`` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, budget: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._budget = budget
        ids = vocabulary()
        self._end, self._system, self._user, self._assistant = (ids[token] for token in (END, SYSTEM, USER, ASSISTANT))
        self._names = list(SKILLS)

    def batches(self, steps: int) -> Iterator[list[Sample]]:
        """Batches without end, for a run of so many ``steps``."""
        done = 0
        while True:
            longest = longest_count(done / steps)
            pool = sorted((self._sample(longest) for _ in range(POOL)), key=lambda sample: len(sample.tokens))
            cut: list[list[Sample]] = [[]]
            for sample in pool:
                if cut[-1] and (len(cut[-1]) + 1) * len(sample.tokens) > self._budget:
                    cut.append([])
                cut[-1].append(sample)
            self._rng.shuffle(cut)
            yield from cut
            done += len(cut)

    def _sample(self, longest: int) -> Sample:
        tokens: list[int] = []
        weights: list[float] = []
        skills: list[int] = []
        system = draw_system(self._rng)
        parts = [] if system is None else [(self._system, system, -1)]
        for _ in range(self._rng.randint(1, 4)):
            exchange = self._exchange(longest)
            parts.append((self._user, exchange.prompt, -1))
            parts.append((self._assistant, exchange.answer, self._names.index(exchange.skill)))
        for role, text, skill in parts:
            ids = [*self._tokenizer.encode(text.strip(), add_special_tokens=False), self._end]
            tokens += [role, *ids]
            weights += [0.0, *([0.0] * len(ids) if skill < 0 else answer_weights(len(ids)))]
            skills += [skill] * (len(ids) + 1)
        return Sample(tokens, weights, skills)

    def _exchange(self, longest: int) -> Exchange:
        name = self._rng.choices(list(MIX), list(MIX.values()))[0]
        if name == "count":
            return draw_count(self._rng, False, longest)
        return SKILLS[name](self._rng, False)


class Losses(NamedTuple):
    """Every answer token's loss, what it counts for, and its skill."""

    values: torch.Tensor
    weights: torch.Tensor
    skills: torch.Tensor


def answer_losses(model: LlamaForCausalLM, batch: list[Sample]) -> Losses:
    """Only the places in front of an answer's tokens meet the vocabulary."""
    width = max(len(sample.tokens) for sample in batch)
    # Padding stands on the right, behind every real token, so the causal mask is all the mask that is needed.
    tokens = torch.tensor([sample.tokens + [0] * (width - len(sample.tokens)) for sample in batch])
    weights = torch.tensor([sample.weights + [0.0] * (width - len(sample.tokens)) for sample in batch])[:, 1:]
    skills = torch.tensor([sample.skills + [-1] * (width - len(sample.tokens)) for sample in batch])[:, 1:]
    answered = weights > 0
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1][answered]
    losses = functional.cross_entropy(model.lm_head(hidden), tokens[:, 1:][answered], reduction="none")
    return Losses(losses, weights[answered], skills[answered])


def optimisers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the token table and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Progress:
    """Prints, now and then, how far the run is and each skill's mean loss."""

    def __init__(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, every
        self._began = time.monotonic()
        self._tokens = 0
        self._sums = torch.zeros(len(SKILLS), 2)

    def add(self, step: int, tokens: int, losses: Losses) -> None:
        self._tokens += tokens
        self._sums[:, 0].index_add_(0, losses.skills, losses.values.detach())
        self._sums[:, 1].index_add_(0, losses.skills, torch.ones_like(losses.values))
        if step % self._every and step != self._steps:
            return
        spent = time.monotonic() - self._began
        left = spent / step * (self._steps - step)
        means = (self._sums[:, 0] / self._sums[:, 1].clamp(min=1)).tolist()
        by_skill = " ".join(f"{name} {mean:.4f}" for name, mean in zip(SKILLS, means, strict=True))
        speed = f"{spent:5.0f} s, {left:5.0f} s left, {self._tokens / spent:5.0f} tok/s"
        print(f"{step:>6}/{self._steps} {speed} | {by_skill}", flush=True)
        self._sums.zero_()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    config = model.config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=False
    )
    model.save_pretrained(str(folder))


def step_rate(step: int, steps: int, highest: float) -> float:
    """Up over the first hundred steps, level, then down to nothing over the second half."""
    return highest * min(1.0, step / 100, 2 * (1 - step / (steps + 1)))


def train_step(model: LlamaForCausalLM, chosen: list[torch.optim.Optimizer], batch: list[Sample]) -> Losses:
    losses = answer_losses(model, batch)
    ((losses.values * losses.weights).sum() / losses.weights.sum()).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in chosen:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return losses


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(save_tokenizer(arguments.out), arguments.seed, arguments.batch_tokens)
    model = build_model(arguments.seed)
    chosen = optimisers(model, arguments.rate)
    print(f"{model.num_parameters():,} parameters", flush=True)
    progress = Progress(arguments.steps, arguments.every)
    batches = sampler.batches(arguments.steps)
    for step in range(1, arguments.steps + 1):
        for optimiser in chosen:
            for group in optimiser.param_groups:
                group["lr"] = step_rate(step, arguments.steps, arguments.rate)
        batch = next(batches)
        losses = train_step(model, chosen, batch)
        progress.add(step, sum(len(sample.tokens) for sample in batch), losses)
        if step % arguments.save_every == 0:
            save(model, arguments.out)
    save(model, arguments.out)


def parse() -> argparse.Namespace:
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], formatter_class=defaults)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the model")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a batch, padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=100, help="steps between progress lines")
    parser.add_argument("--save-every", type=int, default=500, help="steps between saves")
    return parser.parse_args()


if __name__ == "__main__":
    disable_progress_bar()  # type: ignore[no-untyped-call]
    train(parse())
