"""What the clients ask, drawn at random, with the answer of an undisturbed run beside it.

The scripted engine answers at draw time. The demo model answers a fixed set of questions before the storm begins, in a
process of its own, so that this one never loads torch.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from chaos.alone import Alone, Answered, load
from chaos.plan import DEMO, FAKE
from tasks.sampling import Sampling

DEMO_FOLDER = Path(__file__).parent.parent / "models" / "demo"

#: Milliseconds that a step of the scripted engine takes; a batch goes as slowly as its slowest member.
STEP_MS = 20
#: At least half of the jobs have as many tokens.
LONG = 100
#: Words of an answer that no client waits for.
ENDLESS = 4000


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to send, and what it must be answered."""

    model: str
    route: Literal["chat", "completion"]
    prompts: tuple[str, ...]
    sampling: Sampling
    n: int
    prompt_tokens: int
    answers: tuple[Answered, ...]

    def body(self, **more: Any) -> dict[str, Any]:
        """The request's JSON."""
        s = self.sampling
        body: dict[str, Any] = {"model": self.model, "max_tokens": s.max_tokens, "temperature": s.temperature}
        body |= {"seed": s.seed, "n": self.n} | more
        if s.stop:
            body["stop"] = list(s.stop)
        neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "top_p": 1.0}
        body |= {name: getattr(s, name) for name, value in neutral.items() if getattr(s, name) != value}
        if self.route == "completion":
            prompt = list(self.prompts) if len(self.prompts) > 1 else self.prompts[0]
            return body | {"prompt": prompt} | ({} if s.logprobs is None else {"logprobs": s.logprobs})
        body["messages"] = [{"role": "user", "content": self.prompts[0]}]
        return body if s.logprobs is None else body | {"logprobs": True, "top_logprobs": s.logprobs}

    @property
    def tokens(self) -> int:
        """Answer tokens of all choices."""
        return sum(len(answer.tokens) for answer in self.answers)


Draw = Callable[[random.Random], tuple[str, Sampling]]


def _words(rng: random.Random) -> tuple[str, Sampling]:
    """Drawn by (seed, choice, index), or in a fixed order."""
    temperature = rng.choice((0.0, 0.8, 1.0))
    return f"[tokens={rng.randrange(110, 231, 10)}]", Sampling(1000, rng.randrange(12), temperature=temperature)


def _short(rng: random.Random) -> tuple[str, Sampling]:
    return f"[tokens={rng.randrange(5, 90, 5)}]", Sampling(1000, rng.randrange(12), temperature=0.7)


def _count(rng: random.Random) -> tuple[str, Sampling]:
    """Several tokens a number, since every byte is one."""
    first = rng.randrange(1, 900, 20)
    return f"Count from {first} to {first + rng.randrange(25, 46, 5)}.", Sampling(1000, 1, temperature=0.0)


def _cut(rng: random.Random) -> tuple[str, Sampling]:
    """Ends by max_tokens."""
    text, sampling = _count(rng)
    return text, replace(sampling, max_tokens=rng.choice((40, 101, 120)))


def _echo(rng: random.Random) -> tuple[str, Sampling]:
    """Characters of several tokens, which must not be torn by an interruption."""
    pieces = ("Ärger über Öl", "水は流れる", "🌊🌊 waves", "наводнение", "الماء", "e\u0301le\u0300ve", "🏳️‍🌈 flag")
    text = " ".join(rng.choice(pieces) for _ in range(rng.randrange(6, 12)))
    return text, Sampling(1000, 1, temperature=0.0)


def _stop(rng: random.Random) -> tuple[str, Sampling]:
    """A stop string that is many tokens long, and one that never comes but always looks as if it began."""
    first = rng.randrange(100, 800, 50)
    stops = (f", {first + rng.randrange(15, 35)}, ", ", x")
    return f"Count from {first} to {first + 60}.", Sampling(1000, 1, temperature=0.0, stop=stops)


def _scored(rng: random.Random) -> tuple[str, Sampling]:
    text, sampling = rng.choice((_words, _echo))(rng)
    return text, replace(sampling, logprobs=rng.choice((0, 2)))


def _penalised(rng: random.Random) -> tuple[str, Sampling]:
    text, sampling = _words(rng)
    return text, replace(sampling, frequency_penalty=0.5, presence_penalty=0.2, repetition_penalty=1.1, top_p=0.9)


FAMILIES: tuple[tuple[Draw, int], ...] = (
    (_words, 30), (_count, 20), (_short, 12), (_echo, 10), (_stop, 8), (_scored, 8), (_cut, 6), (_penalised, 6),
)  # fmt: skip
#: What may be cut off anywhere and still is a beginning of the whole: no stop strings, no characters of several tokens.
PLAIN: tuple[tuple[Draw, int], ...] = ((_words, 2), (_count, 1))


class FakeAsks:
    """Requests to the scripted engine: of each sort so many different ones, since each costs an undisturbed run."""

    DIFFERENT = 150

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._alone = Alone.scripted()
        self._known: dict[tuple[Any, ...], tuple[Answered, ...]] = {}
        self._drawn: dict[tuple[Any, ...], list[Ask]] = {}

    def draw(self, families: Sequence[tuple[Draw, int]] = FAMILIES, *, chat: bool = False) -> Ask:
        """Any request, or one of `families`; `chat`: on the chat route."""
        drawn = self._drawn.setdefault((id(families), chat), [])
        if len(drawn) < self.DIFFERENT:
            drawn.append(self._draw(families, chat))
            return drawn[-1]
        return self._rng.choice(drawn)

    def poison(self, at: int) -> Ask:
        """Kills every worker that comes to token `at`."""
        sampling = Sampling(1000, 1, temperature=0.0)
        return self.make(("[tokens=60]",), sampling, 1, "chat", f"[die_at={at}]")

    def _draw(self, families: Sequence[tuple[Draw, int]], chat: bool) -> Ask:
        draws, weights = zip(*families, strict=True)
        text, sampling = self._rng.choices(draws, weights)[0](self._rng)
        n = self._rng.choices((1, 2, 3), (88, 9, 3))[0]
        completion = not chat and self._rng.random() < 0.2
        prompts = (text, text) if completion and self._rng.random() < 0.2 else (text,)
        return self.make(prompts, sampling, n, "completion" if completion else "chat")

    def endless(self) -> Ask:
        """Runs for longer than any test waits."""
        return self.make((f"[tokens={ENDLESS}]",), Sampling(ENDLESS + 100, 1, temperature=0.0), 1, "chat")

    def wide(self) -> Ask:
        """Many bytes a token."""
        sampling = Sampling(1000, self._rng.randrange(4), temperature=0.8, logprobs=20)
        return self.make((f"[tokens={self._rng.choice((120, 150))}]",), sampling, 1, "chat")

    def make(
        self,
        texts: tuple[str, ...],
        sampling: Sampling,
        n: int,
        route: Literal["chat", "completion"],
        extra: str = "",
    ) -> Ask:
        """This request, with its answer; `extra` are directives that disturb, which the undisturbed run lacks."""
        key = (texts, repr(sampling), n, route)
        if key not in self._known:
            quick = [self._alone.prompt(f"{text} [step_ms=0]", route) for text in texts]
            self._known[key] = self._alone.answers(quick, sampling, n)
        prompts = tuple(f"{text} [step_ms={STEP_MS}]{extra}" for text in texts)
        size = sum(len(self._alone.prompt(prompt, route)) for prompt in prompts)
        return Ask(FAKE, route, prompts, sampling, n, size, self._known[key])


#: Greedy, drawn with a seed, penalised, stopped, scored, of several choices, with characters of several tokens.
_DEMO: tuple[tuple[str, Sampling, int], ...] = (
    *((f"Count from {a} to {a + 34}.", Sampling(160, 1, temperature=0.0), 1) for a in (3, 100, 240, 511, 700, 860)),
    *((f"Count from {a} to {a - 34}.", Sampling(160, 1, temperature=0.0), 1) for a in (900, 150)),
    *((f"Count from {a} to {a + 60}.", Sampling(140, a, temperature=0.7, top_p=0.95), 1) for a in (20, 333, 615)),
    ("Count from 40 to 90.", Sampling(120, 5, temperature=0.9), 2),
    ("Count from 10 to 80.", Sampling(160, 1, temperature=0.0, stop=(", 45, ", ", x")), 1),
    ("Count from 600 to 660.", Sampling(160, 1, temperature=0.0, stop=("630",)), 1),
    ("Count from 200 to 240.", Sampling(120, 3, temperature=0.8, frequency_penalty=0.4, presence_penalty=0.2), 1),
    ("Count from 70 to 120.", Sampling(120, 1, temperature=0.0, repetition_penalty=1.05), 1),
    ("Count from 400 to 440.", Sampling(120, 1, temperature=0.0, logprobs=2), 1),
    ("Count from 5 to 60.", Sampling(120, 9, temperature=0.6, logprobs=0), 1),
    ("Say something in Chinese.", Sampling(120, 1, temperature=0.0), 1),
    ("Say something with emoji.", Sampling(120, 2, temperature=0.5), 1),
)


def ask_demo() -> list[Ask]:
    """The demo model's questions, answered by it in this process."""
    alone = load(DEMO_FOLDER)
    asks = []
    for text, sampling, n in _DEMO:
        prompt = alone.prompt(text, "chat")
        asks.append(Ask(DEMO, "chat", (text,), sampling, n, len(prompt), alone.answers([prompt], sampling, n)))
    return asks


def ask_demo_elsewhere() -> list[Ask]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _one_thread) as pool:
        return pool.submit(ask_demo).result(300)


def _one_thread() -> None:
    """As the workers of the house: more threads add up in another order. Before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
