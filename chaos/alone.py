"""An engine with nobody else around and no line before it: what it answers is the undisturbed answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.sampling import Sampling
from workers.engine import fake_model
from workers.engine.base import Engine, Event, Request
from workers.engine.registry import EngineSpec, build

Logprob = tuple[str, float]
Route = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True)
class Answered:
    """One choice: its text, its tokens with the end token, and why it ended (stop, length)."""

    text: str
    tokens: tuple[int, ...]
    finish: str
    logprobs: tuple[Logprob, ...] | None = None


class Alone:
    """`prompt` renders and tokenises by itself, as the model wants it."""

    def __init__(self, engine: Engine, prompt: Callable[[str, Route], list[int]]) -> None:
        self._engine = engine
        self.prompt = prompt

    @classmethod
    def scripted(cls) -> Alone:
        """The scripted engine."""
        tokenizer = fake_model.build_tokenizer()

        def prompt(text: str, route: Route) -> list[int]:
            whole = f"<|user|>{text}<|end|><|assistant|>" if route == "chat" else text
            ids: list[int] = tokenizer.encode(whole, add_special_tokens=False).ids
            return ids

        return cls(build("fake", EngineSpec("", max_num_seqs=64)), prompt)

    def answers(self, prompts: Sequence[list[int]], sampling: Sampling, n: int) -> tuple[Answered, ...]:
        """Every choice's answer; choice c answers prompt c // n."""
        events: dict[str, list[Event]] = {}
        for choice in range(len(prompts) * n):
            events[str(choice)] = []
            self._engine.submit(Request(str(choice), prompts[choice // n], sampling, choice))
        while self._engine.has_work():
            for event in self._engine.step():
                events[event.rid].append(event)
        return tuple(_fold(each, sampling) for each in events.values())


def _fold(events: list[Event], sampling: Sampling) -> Answered:
    tokens = tuple(token for event in events for token in event.tokens)
    finish = events[-1].finish
    assert finish in ("stop", "length"), f"the undisturbed run ended with {finish}: {events[-1].error}"
    logprobs = None
    if sampling.logprobs is not None:
        logprobs = tuple((one.token, one.logprob) for event in events for one in event.logprobs or ())
    return Answered("".join(event.text for event in events), tokens, str(finish), logprobs)


def load(folder: Path) -> Alone:
    """A real model in fp32 on the CPU, with its own chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompt(text: str, route: Route) -> list[int]:
        if route == "completion":
            return list(tokenizer(text)["input_ids"])
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    return Alone(build("transformers", EngineSpec(str(folder), "float32", "cpu", 32, 4096)), prompt)
