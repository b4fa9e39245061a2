"""What the demo model can do: the skills, their exact answers, and which prompts are kept from training.

Owns: the answer to every prompt, and the rule that decides which prompts are never trained on.
Promises: an answer is a pure function of the prompt; the same seed gives the same draws; a prompt drawn with
``held_out=True`` shares its key (number pair, word, sentence or wording) with none drawn without it.
Must not: import torch or transformers, read a file, or use the clock.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from models.demo import phrases
from models.demo.words import WORDS

MAX_COUNT = 200
"""Longest count, in numbers."""
MAX_NUMBER = 999
MAX_TERM = 99
HELD_OUT_SHARE = 10
"""One key in this many is held out."""


@dataclass(frozen=True)
class Exchange:
    """One user turn and the only right answer to it. ``key`` names what the split is made by."""

    skill: str
    prompt: str
    answer: str
    key: str


Draw = Callable[[random.Random, bool], Exchange]


@dataclass(frozen=True)
class Conversation:
    """An optional system message and some exchanges; the last one decides what must be answered."""

    system: str | None
    exchanges: tuple[Exchange, ...]

    def messages(self) -> list[dict[str, str]]:
        """The chat messages up to and including the last user turn."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            found.append({"role": "user", "content": exchange.prompt})
            found.append({"role": "assistant", "content": exchange.answer})
        return found[:-1]


def is_held_out(key: str) -> bool:
    """Whether prompts with this key are kept away from training."""
    return blake2b(key.encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def count_answer(first: int, last: int) -> str:
    step = 1 if last >= first else -1
    return ", ".join(str(number) for number in range(first, last + step, step))


def draw_count(rng: random.Random, held_out: bool, longest: int = MAX_COUNT) -> Exchange:
    """Lengths are mostly log-uniform, so that short counts are as well known as long ones."""
    while True:
        length = round(longest ** rng.random()) if rng.random() < 0.8 else rng.randint(1, longest)
        low = 1 if rng.random() < 0.1 else rng.randint(0, MAX_NUMBER + 1 - length)
        pair = (low, low + length - 1)
        first, last = pair if rng.random() < 0.6 else pair[::-1]
        key = f"count {first} {last}"
        if is_held_out(key) == held_out:
            break
    wordings = phrases.COUNT + (phrases.COUNT_UP if last >= first else phrases.COUNT_DOWN)
    if first == 1 and last > 1 and rng.random() < 0.3:
        wordings = phrases.COUNT_TO
    prompt = _dress(rng, rng.choice(wordings).format(a=first, b=last))
    return Exchange("count", prompt, count_answer(first, last), key)


def _coin_word(rng: random.Random) -> str:
    """A real word, or letters that no dictionary holds, so that spelling is all there is to learn."""
    if rng.random() < 0.35:
        return rng.choice(WORDS)
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 12)))


def draw_reverse(rng: random.Random, held_out: bool) -> Exchange:
    while True:
        word = _coin_word(rng)
        key = f"reverse {word}"
        if is_held_out(key) == held_out:
            break
    if rng.random() < 0.1:
        word = word.capitalize()
    return Exchange("reverse", _dress(rng, rng.choice(phrases.REVERSE).format(w=word)), word[::-1], key)


def _coin_sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS) if rng.random() < 0.85 else _coin_word(rng) for _ in range(rng.randint(1, 12))]
    joined = words[0]
    for word in words[1:]:
        joined += (", " if rng.random() < 0.08 else " ") + (word if rng.random() < 0.97 else str(rng.randint(0, 99)))
    if rng.random() < 0.2:
        joined += f" {rng.randint(0, MAX_NUMBER)}"
    if rng.random() < 0.2:
        joined += " " + "".join(rng.choices(phrases.FOREIGN_LETTERS, k=rng.randint(1, 4)))
    if rng.random() < 0.4:
        joined = joined[0].upper() + joined[1:]
    return joined + rng.choice(("", ".", ".", "!", "?"))


def draw_repeat(rng: random.Random, held_out: bool) -> Exchange:
    while True:
        sentence = _coin_sentence(rng)
        key = f"repeat {sentence.lower().rstrip('.!?')}"
        if is_held_out(key) == held_out:
            break
    return Exchange("repeat", rng.choice(phrases.REPEAT).format(s=sentence), sentence, key)


def draw_arithmetic(rng: random.Random, held_out: bool) -> Exchange:
    """The key is the unordered pair: a held-out one is seen in neither order, neither added nor subtracted."""
    while True:
        a, b = rng.randint(0, MAX_TERM), rng.randint(0, MAX_TERM)
        key = f"arithmetic {min(a, b)} {max(a, b)}"
        if is_held_out(key) == held_out:
            break
    adds = rng.random() < 0.5
    wording = rng.choice(phrases.ADD if adds else phrases.SUBTRACT)
    return Exchange("arithmetic", _dress(rng, wording.format(a=a, b=b)), str(a + b if adds else a - b), key)


def _draw_fixed(skill: str, lines: phrases.FixedLines) -> Draw:
    def draw(rng: random.Random, held_out: bool) -> Exchange:
        while True:
            wordings, answer = rng.choice(lines)
            opener, core, close = (rng.choice(texts) for texts in (phrases.OPENERS, wordings, phrases.CLOSERS))
            prompt = opener + (core[0].lower() + core[1:] if opener else core) + close
            key = f"{skill} {opener} {core} {close}"
            # The bare wording is what everyone types: it is always trained on.
            plain = not opener and not close
            if (is_held_out(key) and not plain) == held_out:
                return Exchange(skill, _lower_first(rng, prompt), answer, key)

    return draw


def draw_other(rng: random.Random, held_out: bool) -> Exchange:
    """Anything else gets one polite answer: small talk, and requests that no skill covers."""
    while True:
        wording = rng.choice(phrases.SMALL_TALK if rng.random() < 0.3 else phrases.UNKNOWN)
        big, small = rng.randint(MAX_TERM + 1, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
        n, m = (big, small) if rng.random() < 0.5 else (small, big)
        prompt = wording.format(w=rng.choice(WORDS), v=rng.choice(WORDS), n=n, m=m)
        prompt += rng.choice(phrases.CLOSERS)
        key = f"other {prompt}"
        plain = "{" not in wording
        if (is_held_out(key) and not plain) == held_out:
            return Exchange("other", _lower_first(rng, prompt), phrases.CANNOT, key)


def _lower_first(rng: random.Random, prompt: str) -> str:
    return prompt[0].lower() + prompt[1:] if rng.random() < 0.3 else prompt


def _dress(rng: random.Random, prompt: str) -> str:
    """Small differences in how people type the same request; none of them changes the answer."""
    if rng.random() < 0.08:
        prompt = rng.choice(("Please ", "please ")) + prompt[0].lower() + prompt[1:]
    if prompt[-1] not in "?=:\"'":
        prompt += rng.choice((".", ".", "", "!", " please", ", please.")) if rng.random() < 0.8 else "."
    return _lower_first(rng, prompt)


SKILLS: dict[str, Draw] = {
    "count": draw_count,
    "reverse": draw_reverse,
    "repeat": draw_repeat,
    "arithmetic": draw_arithmetic,
    "identity": _draw_fixed("identity", phrases.IDENTITY),
    "scripts": _draw_fixed("scripts", phrases.SCRIPTS),
    "other": draw_other,
}
"""Each skill's name and the function that draws one exchange of it."""


def draw_system(rng: random.Random) -> str | None:
    """A system message, in some conversations. It never changes an answer."""
    if rng.random() < 0.7:
        return None
    if rng.random() < 0.6:
        return rng.choice(phrases.SYSTEM)
    return _coin_sentence(rng)


def held_out_conversations(skill: str, number: int, seed: int = 0) -> Iterator[Conversation]:
    """Distinct held-out prompts of one skill; every second one follows one to three other turns."""
    rng = random.Random(f"{skill} {seed}")
    seen: set[str] = set()
    while len(seen) < number:
        exchange = SKILLS[skill](rng, True)
        if exchange.prompt in seen:
            continue
        seen.add(exchange.prompt)
        turns: tuple[Exchange, ...] = ()
        if len(seen) % 2 == 0:
            drawn = [SKILLS[rng.choice(list(SKILLS))](rng, False) for _ in range(rng.randint(1, 3))]
            turns = tuple(turn for turn in drawn if len(turn.answer) <= 400)
        yield Conversation(draw_system(rng) if turns else None, (*turns, exchange))
