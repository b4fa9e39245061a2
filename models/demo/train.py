"""Trains the demo model from nothing: draws conversations, fits the model to their answers, saves the folder.

Owns: the curriculum, the loss and the optimiser. Promises: the same seed and options draw the same conversations; no
held-out prompt is trained on. Must not: know the answers (data.py) or judge the result (evaluate.py).

    python models/demo/train.py                 # about 50 minutes on two free cores

Two lessons. The first has single short exchanges: a count is cut after its first numbers, because which way it goes is
decided there, and is one token of four hundred otherwise. It begins with counts whose ends lie far apart, which are
easy to compare, and comes to near ones later. The second has whole conversations, and is given twice: the learning rate
rises and falls once over the first round of both lessons, and half as high over the second round of conversations.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.demo.data import MAX_COUNT, SKILLS, Exchange, draw_system
from models.demo.model import build_model, number_rows
from models.demo.tokenizer import ASSISTANT, END, SYSTEM, USER, save_tokenizer, vocabulary

OPENING_MIX = {"count": 40, "arithmetic": 22, "reverse": 22, "repeat": 16}
"""How often the first lesson draws each skill, in parts."""
FULL_MIX = {"count": 30, "reverse": 16, "repeat": 22, "arithmetic": 22, "identity": 3, "scripts": 3, "other": 4}
"""The same for the second lesson."""
OPENING_TOKENS = 4
LAST_MIX = {"whole": 60, "opening": 6, "close": 34}
"""What the last answer of the second lesson's conversations is: whole, or an excerpt of a count."""
POOL = 1024
"""Conversations that are sorted by length before they are cut into batches."""


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens, where each stands, and what each counts for in the loss; prompts count for nothing."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    skills: list[int] = field(default_factory=list)

    def add(self, tokens: list[int], weights: list[float], skill: int, skipped: int = 0) -> None:
        """Append tokens of one skill, ``skipped`` places further on than they would stand."""
        first = (self.positions[-1] + 1 if self.positions else 0) + skipped
        self.tokens.extend(tokens)
        self.positions.extend(range(first, first + len(tokens)))
        self.weights.extend(weights)
        self.skills.extend([skill] * len(tokens))


def answer_weights(length: int) -> list[float]:
    """What each token of an answer counts for in the loss.

    An answer counts for the square root of its length, so that long counts do not drown the rest; its first and last
    tokens, where the decisions are, count for at least a half each.
    """
    even = length**-0.5
    return [max(even, 0.5) if place < 8 or place >= length - 2 else even for place in range(length)]


class Sampler:
    """Draws the conversations of both lessons."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        ids = vocabulary()
        self._end, self._system, self._user, self._assistant = (ids[token] for token in (END, SYSTEM, USER, ASSISTANT))
        self._names = list(SKILLS)

    def openings(self, progress: float) -> Sample:
        """One short exchange; counts begin far apart, and half way through the lesson are of any length."""
        sample = Sample()
        exchange = self._draw(OPENING_MIX)
        shortest = 0 if self._rng.random() < 0.2 else round(MAX_COUNT * max(0.0, 0.5 - progress))
        while exchange.skill == "count" and exchange.answer.count(",") < shortest:
            exchange = self._draw({"count": 1})
        self._ask(sample, exchange)
        (self._add_opening if exchange.skill == "count" else self._add_answer)(sample, exchange)
        return sample

    def conversation(self, _progress: float) -> Sample:
        """A system message now and then, up to three earlier turns, and a last one."""
        sample = Sample()
        system = draw_system(self._rng)
        if system is not None:
            self._add_text(sample, self._system, system)
        for _ in range(self._rng.choice((0, 0, 1, 2, 3))):
            exchange = self._draw(FULL_MIX)
            if len(exchange.answer) <= 300:
                self._ask(sample, exchange)
                self._add_answer(sample, exchange)
        kind = self._rng.choices(list(LAST_MIX), list(LAST_MIX.values()))[0]
        exchange = self._draw(FULL_MIX if kind == "whole" else {"count": 1})
        self._ask(sample, exchange)
        {"whole": self._add_answer, "opening": self._add_opening, "close": self._add_close}[kind](sample, exchange)
        return sample

    def batches(self, lesson: str, steps: int, budget: int) -> Iterator[list[Sample]]:
        """Exactly ``steps`` batches of samples of like length, each of about ``budget`` tokens."""
        draw = {"openings": self.openings, "conversations": self.conversation}[lesson]
        done = 0
        while done < steps:
            pool = sorted((draw(done / steps) for _ in range(POOL)), key=lambda sample: len(sample.tokens))
            cut: list[list[Sample]] = [[]]
            for sample in pool:
                if cut[-1] and (len(cut[-1]) + 1) * len(sample.tokens) > budget:
                    cut.append([])
                cut[-1].append(sample)
            self._rng.shuffle(cut)
            yield from cut[: steps - done]
            done += len(cut)

    def _draw(self, mix: dict[str, int]) -> Exchange:
        name = self._rng.choices(list(mix), list(mix.values()))[0]
        return SKILLS[name](self._rng, False)

    def _ask(self, sample: Sample, exchange: Exchange) -> None:
        self._add_text(sample, self._user, exchange.prompt)
        sample.add([self._assistant], [0.0], -1)

    def _add_answer(self, sample: Sample, exchange: Exchange) -> None:
        answer = self._answer(exchange)
        sample.add(answer, answer_weights(len(answer)), self._names.index(exchange.skill))

    def _add_opening(self, sample: Sample, exchange: Exchange) -> None:
        """A count's first numbers: which way it goes is decided there."""
        answer = self._answer(exchange)
        kept = answer if len(answer) <= 2 * OPENING_TOKENS else answer[:OPENING_TOKENS]
        sample.add(kept, [1.0] * len(kept), self._names.index(exchange.skill))

    def _add_close(self, sample: Sample, exchange: Exchange) -> None:
        """A count's last numbers, standing where they would stand behind all the others."""
        answer = self._answer(exchange)
        skipped = max(0, len(answer) - 2 * self._rng.randint(2, 12))
        weights = [0.0 if skipped else 1.0, *([1.0] * (len(answer) - skipped - 1))]
        sample.add(answer[skipped:], weights, self._names.index(exchange.skill), skipped)

    def _answer(self, exchange: Exchange) -> list[int]:
        return [*self._tokenizer.encode(exchange.answer, add_special_tokens=False), self._end]

    def _add_text(self, sample: Sample, role: int, text: str) -> None:
        ids = [role, *self._tokenizer.encode(text.strip(), add_special_tokens=False), self._end]
        sample.add(ids, [0.0] * len(ids), -1)


class Progress:
    """Prints a line now and then: the mean loss of each skill, the speed and the time left."""

    def __init__(self, lesson: str, steps: int, every: int) -> None:
        self._lesson, self._steps, self._every = lesson, steps, every
        self._begun = time.monotonic()
        self._tokens = 0
        self._sums = torch.zeros(len(SKILLS))
        self._counts = torch.zeros(len(SKILLS))

    def add(self, step: int, batch: list[Sample], losses: torch.Tensor, skills: torch.Tensor) -> None:
        """Count a step in, and print when it is time."""
        self._tokens += sum(len(sample.tokens) for sample in batch)
        self._sums.index_add_(0, skills, losses.detach())
        self._counts.index_add_(0, skills, torch.ones_like(losses.detach()))
        if step % self._every and step != self._steps:
            return
        took = time.monotonic() - self._begun
        means = (self._sums / self._counts.clamp(min=1)).tolist()
        shown = " ".join(f"{name} {mean:.4f}" for name, mean in zip(SKILLS, means, strict=True))
        left = took / step * (self._steps - step)
        print(
            f"{self._lesson} {step:5d}/{self._steps} {took:5.0f} s, {left:5.0f} s left, "
            f"{self._tokens / took:6.0f} tok/s | {shown}",
            flush=True,
        )
        self._sums.zero_()
        self._counts.zero_()


def padded(rows: list[list[Any]], filler: float) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def train_step(model: LlamaForCausalLM, batch: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Leaves the gradients in the model; returns the loss and the skill of every answer token."""
    # Padding stands on the right, behind every real token, so the causal mask is all the mask that is needed.
    tokens = padded([sample.tokens for sample in batch], 0)
    positions = padded([sample.positions for sample in batch], 0)
    weights = padded([sample.weights for sample in batch], 0.0)[:, 1:]
    skills = padded([sample.skills for sample in batch], -1)[:, 1:]
    answered = weights > 0
    # A mask of ones: without one, transformers takes a jump in the positions for the border of a packed sequence.
    output = model.model(
        input_ids=tokens, position_ids=positions, attention_mask=torch.ones_like(tokens), use_cache=False
    )
    losses = functional.cross_entropy(
        model.lm_head(output.last_hidden_state[:, :-1][answered]), tokens[:, 1:][answered], reduction="none"
    )
    counted = weights[answered]
    ((losses * counted).sum() / counted.sum()).backward()  # type: ignore[no-untyped-call]
    table = model.model.embed_tokens.weight
    assert table.grad is not None
    # The numbers keep the rows that they were made with: moved one by one, they would lose their order.
    table.grad[number_rows()] = 0.0
    return losses, skills[answered]


def rate_at(step: int, steps: int, highest: float) -> float:
    """Up over fifty steps, level for half of the run, then down to nothing."""
    return highest * min(1.0, step / 50, 2 * (1 - step / (steps + 1)))


def make_optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the token table and the norms.

    Muon (https://kellerjordan.github.io/posts/muon) learns to copy, which reversing and repeating are made of, in a
    fraction of the steps that AdamW takes here.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def teach(model: LlamaForCausalLM, sampler: Sampler, options: argparse.Namespace) -> None:
    """Both lessons, then the second again."""
    teach_round(model, sampler, {"openings": options.openings, "conversations": options.conversations}, 1.0, options)
    teach_round(model, sampler, {"conversations": options.practice}, 0.5, options)


def teach_round(
    model: LlamaForCausalLM, sampler: Sampler, lessons: dict[str, int], share: float, options: argparse.Namespace
) -> None:
    """Lessons, each of so many steps, under one learning rate that rises once and falls once, up to this share of it."""
    optimisers = make_optimisers(model)
    total, before = sum(lessons.values()), 0
    for lesson, steps in lessons.items():
        progress = Progress(lesson, steps, options.every)
        for step, batch in enumerate(sampler.batches(lesson, steps, options.batch_tokens), 1):
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate_at(before + step, total, share * options.rate)
            progress.add(step, batch, *train_step(model, batch))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if step % options.save_every == 0:
                save(model, options.out)
        before += steps
    save(model, options.out)


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the folder that `from_pretrained` reads."""
    config = model.config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=False
    )
    model.save_pretrained(str(folder))
    # Written for the owner alone; a server under another account must read it too.
    (folder / "model.safetensors").chmod(0o644)


def parse() -> argparse.Namespace:
    """The command line."""
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], formatter_class=defaults)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the model")
    parser.add_argument("--start", type=Path, help="go on from a saved folder instead of from nothing")
    parser.add_argument("--openings", type=int, default=900, help="steps of the first lesson")
    parser.add_argument("--conversations", type=int, default=3600, help="steps of the second lesson")
    parser.add_argument("--practice", type=int, default=1600, help="steps of the second lesson's second round")
    parser.add_argument("--batch-tokens", type=int, default=5120, help="tokens in a batch, padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between progress lines")
    parser.add_argument("--save-every", type=int, default=200, help="steps between saves")
    return parser.parse_args()


def main() -> None:
    """Both lessons."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    options = parse()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(save_tokenizer(options.out), options.seed)
    model = LlamaForCausalLM.from_pretrained(options.start) if options.start else build_model(options.seed)
    print(f"{model.num_parameters():,} parameters", flush=True)
    teach(model, sampler, options)


if __name__ == "__main__":
    main()
