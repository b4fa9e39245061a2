"""Trains the demo model from nothing: draws conversations, fits the model to their answers, saves the folder.

Owns: the curriculum, the loss and the optimiser. Promises: the same seed and options draw the same conversations; no
held-out prompt is trained on. Must not: know the answers (data.py) or judge the result (evaluate.py).

    python models/demo/train.py                 # about 25 minutes on two free cores

Two lessons. The first has single short exchanges: a count is cut after its first numbers, because which way it goes is
decided there, and is one token of four hundred otherwise. It begins with counts whose ends lie far apart, which are
easy to compare, and comes to near ones later. The second has whole conversations.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.demo.data import MAX_COUNT, SKILLS, Exchange, draw_system
from models.demo.model import build_model, number_rows
from models.demo.tokenizer import ASSISTANT, END, SYSTEM, USER, save_tokenizer, vocabulary

OPENING_MIX = {"count": 45, "arithmetic": 25, "reverse": 30}
"""How often the first lesson draws each skill, in parts."""
FULL_MIX = {"count": 36, "reverse": 20, "repeat": 16, "arithmetic": 18, "identity": 4, "scripts": 2, "other": 4}
"""The same for the second lesson."""
OPENING_TOKENS = 4
EXCERPT_SHARE = 0.5
"""How many of the second lesson's conversations end in an excerpt of a count: its opening, or much more often its close."""
POOL = 1024
"""Conversations that are sorted by length before they are cut into batches."""


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens, and what each counts for in the loss; prompts count for nothing."""

    tokens: list[int]
    weights: list[float]
    skills: list[int]


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
        sample = Sample([], [], [])
        exchange = self._draw(OPENING_MIX)
        shortest = 0 if self._rng.random() < 0.2 else round(MAX_COUNT * max(0.0, 0.5 - progress))
        while exchange.skill == "count" and exchange.answer.count(",") < shortest:
            exchange = self._draw({"count": 1})
        self._add(sample, exchange, exchange.skill == "count")
        return sample

    def conversation(self, _progress: float) -> Sample:
        """A system message now and then, up to two earlier turns, and a last one."""
        sample = Sample([], [], [])
        system = draw_system(self._rng)
        if system is not None:
            self._add_text(sample, self._system, system)
        for _ in range(self._rng.choice((0, 0, 1, 2, 3))):
            exchange = self._draw(FULL_MIX)
            if len(exchange.answer) <= 300:
                self._add(sample, exchange, False)
        if self._rng.random() >= EXCERPT_SHARE:
            self._add(sample, self._draw(FULL_MIX), False)
        elif self._rng.random() < 0.15:
            self._add(sample, self._draw({"count": 1}), True)
        else:
            self._add_close(sample, self._draw({"count": 1}))
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

    def _add(self, sample: Sample, exchange: Exchange, opening: bool) -> None:
        self._add_text(sample, self._user, exchange.prompt)
        answer = [*self._tokenizer.encode(exchange.answer, add_special_tokens=False), self._end]
        if opening and len(answer) > 2 * OPENING_TOKENS:
            answer = answer[:OPENING_TOKENS]
        sample.tokens.extend([self._assistant, *answer])
        sample.weights.extend([0.0, *answer_weights(len(answer))])
        sample.skills.extend([self._names.index(exchange.skill)] * (len(answer) + 1))

    def _add_close(self, sample: Sample, exchange: Exchange) -> None:
        """The last numbers of a count, as if those before had been said: where it stops is one token of hundreds."""
        self._add_text(sample, self._user, exchange.prompt)
        numbers = exchange.answer.split(", ")[-self._rng.randint(2, 12) :]
        answer = [*self._tokenizer.encode(", ".join(numbers), add_special_tokens=False), self._end]
        sample.tokens.extend([self._assistant, *answer])
        sample.weights.extend([0.0, 0.0, *([1.0] * (len(answer) - 1))])
        sample.skills.extend([-1, -1, *([self._names.index(exchange.skill)] * (len(answer) - 1))])

    def _add_text(self, sample: Sample, role: int, text: str) -> None:
        ids = [role, *self._tokenizer.encode(text.strip(), add_special_tokens=False), self._end]
        sample.tokens.extend(ids)
        sample.weights.extend([0.0] * len(ids))
        sample.skills.extend([-1] * len(ids))


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


def train_step(
    model: LlamaForCausalLM, optimiser: torch.optim.Optimizer, batch: list[Sample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One update; returns the loss and the skill of every answer token."""
    width = max(len(sample.tokens) for sample in batch)
    # Padding stands on the right, behind every real token, so the causal mask is all the mask that is needed.
    tokens = torch.tensor([sample.tokens + [0] * (width - len(sample.tokens)) for sample in batch])
    weights = torch.tensor([sample.weights + [0.0] * (width - len(sample.weights)) for sample in batch])[:, 1:]
    skills = torch.tensor([sample.skills + [-1] * (width - len(sample.skills)) for sample in batch])[:, 1:]
    answered = weights > 0
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1][answered]
    losses = functional.cross_entropy(model.lm_head(hidden), tokens[:, 1:][answered], reduction="none")
    counted = weights[answered]
    ((losses * counted).sum() / counted.sum()).backward()  # type: ignore[no-untyped-call]
    table = model.model.embed_tokens.weight
    assert table.grad is not None
    # The numbers keep the rows that they were made with: moved one by one, they would lose their order.
    table.grad[number_rows()] = 0.0
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return losses, skills[answered]


def rate_at(step: int, steps: int, highest: float) -> float:
    """Up over fifty steps, level for a third of the lesson, then down to a thirtieth."""
    level = steps / 3
    falling = 1.0 if step < level else 1 - (step - level) / (steps - level)
    return highest * min(1.0, step / 50, max(1 / 30, falling))


def teach(model: LlamaForCausalLM, sampler: Sampler, lesson: str, steps: int, options: argparse.Namespace) -> None:
    """One lesson, with an optimiser and a learning rate of its own."""
    kept = {"weight_decay": 0.0, "params": [p for p in model.parameters() if p.ndim < 2 or len(p) > 1024]}
    matrices = {"weight_decay": 0.01, "params": [p for p in model.parameters() if p.ndim == 2 and len(p) <= 1024]}
    optimiser = torch.optim.AdamW([kept, matrices], betas=(0.9, 0.95))
    progress = Progress(lesson, steps, options.every)
    for step, batch in enumerate(sampler.batches(lesson, steps, options.batch_tokens), 1):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, options.rate)
        progress.add(step, batch, *train_step(model, optimiser, batch))
        if step % options.save_every == 0:
            save(model, options.out)
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
    parser.add_argument("--openings", type=int, default=1200, help="steps of the first lesson")
    parser.add_argument("--conversations", type=int, default=1600, help="steps of the second lesson")
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
    teach(model, sampler, "openings", options.openings, options)
    teach(model, sampler, "conversations", options.conversations, options)


if __name__ == "__main__":
    main()
