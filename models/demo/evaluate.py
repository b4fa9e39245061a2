"""Measure the demo model on held-out prompts, skill by skill, and write the table into its model card.

Owns: decoding in batches and the table. Promises: prompts that training never saw (the split is checked first),
exact match on the whole answer with an end token behind it, greedy and sampled. Must not: change the model.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModelForCausalLM, AutoTokenizer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.demo.data import SKILLS, Conversation, held_out_conversations

FOLDER = Path(__file__).parent
MODES = ("greedy", "sampled")
TARGETS = {"count": 0.98}
TARGET = 0.95
"""The share of exact answers that each other skill must reach."""
SLACK = 64
"""Tokens beyond the longest right answer in a batch before a reply counts as one that never ended."""
SPLIT_DRAWS = 20_000
BEGIN, FINISH = "<!-- accuracy: written by evaluate.py -->", "<!-- end of accuracy -->"


@dataclass(frozen=True)
class Reply:
    """What the model said to one conversation, and whether it ended by itself."""

    conversation: Conversation
    text: str
    ended: bool

    @property
    def right(self) -> bool:
        return self.ended and self.text == self.conversation.exchanges[-1].answer


Replies = dict[tuple[str, str], list[Reply]]
"""By skill and mode."""


def check_split(skill: str, conversations: list[Conversation]) -> None:
    """Draw as training does, and make sure that nothing asked here can be drawn there."""
    asked = {conversation.exchanges[-1].key for conversation in conversations}
    rng = random.Random(f"split {skill}")
    shared = asked & {SKILLS[skill](rng, False).key for _ in range(SPLIT_DRAWS)}
    if shared:
        raise SystemExit(f"{skill}: {len(shared)} held-out keys are drawn in training, such as {min(shared)!r}")


class Model:
    """The model as anyone loads it."""

    def __init__(self, folder: Path) -> None:
        # Both are Any: what the Auto classes return is decided by the folder.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")

    def replies(self, batch: list[Conversation], sampled: bool) -> list[Reply]:
        prompts = [
            self._tokenizer.apply_chat_template(conversation.messages(), add_generation_prompt=True, tokenize=False)
            for conversation in batch
        ]
        inputs = self._tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        longest = max(len(self._tokenizer.encode(c.exchanges[-1].answer)) for c in batch)
        # top_k=0: plain sampling from the whole vocabulary, which forgives nothing.
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {"do_sample": False}
        with torch.inference_mode():
            rows = self._model.generate(**inputs, max_new_tokens=longest + SLACK, **how)
        found = []
        for conversation, row in zip(batch, rows[:, inputs["input_ids"].shape[1] :], strict=True):
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            found.append(Reply(conversation, text, bool((row == self._tokenizer.eos_token_id).any())))
        return found


def measure(model: Model, skills: list[str], number: int, seed: int, batch_size: int) -> Replies:
    """Ask every skill's prompts in both modes, the short answers first so that a batch wastes little."""
    torch.manual_seed(seed)
    found: Replies = {}
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for skill in skills:
            asked = list(held_out_conversations(skill, number, seed))
            check_split(skill, asked)
            asked.sort(key=lambda conversation: len(conversation.exchanges[-1].answer))
            for mode in MODES:
                bar = progress.add_task(f"{skill}, {mode}", total=len(asked))
                replies = found[skill, mode] = []
                for start in range(0, len(asked), batch_size):
                    replies += model.replies(asked[start : start + batch_size], sampled=mode == "sampled")
                    progress.update(bar, completed=len(replies))
    return found


def accuracy(replies: list[Reply]) -> float:
    return sum(reply.right for reply in replies) / len(replies)


def table(found: Replies) -> str:
    columns = (
        "skill",
        "held-out prompts",
        "exact, greedy",
        "exact, sampled",
        "ended, greedy",
        "ended, sampled",
        "target",
    )
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for skill in dict.fromkeys(skill for skill, _ in found):
        both = [found[skill, mode] for mode in MODES]
        shares = [accuracy(replies) for replies in both]
        shares += [sum(reply.ended for reply in replies) / len(replies) for replies in both]
        cells = [f"{100 * share:.1f} %" for share in shares]
        lines.append(f"| {' | '.join((skill, str(len(both[0])), *cells, f'{100 * target(skill):.0f} %'))} |")
    return "\n".join(lines)


def target(skill: str) -> float:
    return TARGETS.get(skill, TARGET)


def show_misses(found: Replies, most: int) -> None:
    for (skill, mode), replies in found.items():
        for reply in [reply for reply in replies if not reply.right][:most]:
            last = reply.conversation.exchanges[-1]
            print(f"{skill}, {mode}, after {len(reply.conversation.exchanges) - 1} turns: {last.prompt!r}")
            print(f"  expected {last.answer!r}\n  got      {reply.text!r}")


def write_card(card: Path, text: str) -> None:
    """Put the table between the card's two marks, in place of the last one."""
    before, rest = card.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(FINISH)[1]
    card.write_text(f"{before}{BEGIN}\n{text}\n{FINISH}{after}", encoding="utf-8")


def parse() -> argparse.Namespace:
    defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], formatter_class=defaults)
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the model")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts for each skill")
    parser.add_argument("--skills", nargs="+", choices=list(SKILLS), default=list(SKILLS))
    parser.add_argument("--batch", type=int, default=32, help="prompts decoded together")
    parser.add_argument("--seed", type=int, default=0, help="draws the prompts and the samples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--misses", type=int, default=5, help="wrong answers to show for each skill and mode")
    parser.add_argument("--write-card", action="store_true", help="put the table into the model card")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    model = Model(arguments.model)
    found = measure(model, arguments.skills, arguments.prompts, arguments.seed, arguments.batch)
    print(table(found))
    show_misses(found, arguments.misses)
    if arguments.write_card:
        write_card(FOLDER / "README.md", table(found))
    short = [skill for skill, mode in found if mode == "greedy" and accuracy(found[skill, mode]) < target(skill)]
    if short:
        raise SystemExit(f"below target: {', '.join(short)}")


if __name__ == "__main__":
    main()
