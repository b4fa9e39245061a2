"""The scripted model behind the fake engine: a small byte-level tokenizer and answers that follow from the
prompt.

The vocabulary is 256 bytes, four special tokens, and some words, each with and without a space before it,
that are one token each. An answer is a pure function of the last user message and, where it is random, of
(seed, choice, index).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tasks.sampling import Sampling
from workers.engine.draws import uniform

USER, ASSISTANT, SYSTEM, END = SPECIALS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% if tools %}<|system|>Call tools within <tool_call></tool_call>: {{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ 'user' if message.role == 'tool' else message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TALE = (
    "water falls through the gate and turns a wheel below while rain fills lakes above "
    "so every drop that waits will find its way down to light lamps in towns by night"
)
WORDS = _TALE.split()

_DIRECTIVE = re.compile(r"\s*\[([a-z_]+)=(\d+)\]")
_COUNT = re.compile(r"Count from (-?\d+) to (-?\d+)\.?", re.IGNORECASE)
_LONGEST_COUNT = 10_000


@dataclass(frozen=True, slots=True)
class Script:
    """The directives of a prompt, documented in `workers.engine.fake`; None: not asked for."""

    step_ms: int = 5
    tokens: int | None = None
    fail_at: int | None = None
    fail_once_at: int | None = None
    oom_at: int | None = None
    die_at: int | None = None
    hang_at: int | None = None
    hang_s: int = 3600


@cache
def build_tokenizer() -> Tokenizer:
    """The tokenizer of the fake model; ids 0 to 255 are the bytes in the order of the byte-level alphabet."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [space + word for word in dict.fromkeys(WORDS) for space in ("", "Ġ") if len(space + word) > 1]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\p{L}+"), "isolated"), pre_tokenizers.ByteLevel(False, False, False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def token_id(piece: str) -> int:
    """The id of a piece that is in the vocabulary."""
    return build_tokenizer().get_vocab(with_added_tokens=True)[piece]


END_TOKEN, FILLER_TOKEN = token_id(END), token_id("Ġwater")


def last_user_message(prompt: list[int]) -> str:
    """The text between the last user mark and the next mark; of a prompt without marks, all of it."""
    tokenizer = build_tokenizer()
    marks = {token_id(text) for text in SPECIALS}
    user = token_id(USER)
    start = len(prompt) - prompt[::-1].index(user) if user in prompt else 0
    message: list[int] = []
    for token in prompt[start:]:
        if token in marks:
            break
        message.append(token)
    return str(tokenizer.decode(message))


def read_script(message: str) -> tuple[Script, str]:
    """The directives of a message, and the message without them. Unknown ones stay in the text."""
    known = set(Script.__slots__)
    found = {name: int(value) for name, value in _DIRECTIVE.findall(message) if name in known}
    rest = _DIRECTIVE.sub(lambda match: "" if match[1] in known else match[0], message)
    return Script(**found), rest.strip() if found else rest


def answer(script: Script, text: str, sampling: Sampling, choice: int) -> list[int]:
    """All tokens of the answer, the end token last."""
    tokenizer = build_tokenizer()
    if script.tokens is not None:
        ids = _words(script.tokens, sampling, choice)
    else:
        ids = tokenizer.encode(_count(text) or text, add_special_tokens=False).ids
    return [*ids, END_TOKEN]


def _count(text: str) -> str | None:
    match = _COUNT.search(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    last = min(last, first + _LONGEST_COUNT)
    return ", ".join(map(str, range(first, last + 1))) or None


def _words(count: int, sampling: Sampling, choice: int) -> list[int]:
    """One token per word, random when the temperature is, else in the order of `WORDS`."""
    vocab = build_tokenizer().get_vocab()
    picks = list(range(count))
    if sampling.temperature > 0:
        picks = [int(uniform(sampling.seed, choice, index) * len(WORDS)) for index in picks]
    words = [WORDS[pick % len(WORDS)] for pick in picks]
    return [vocab[("Ġ" if at else "") + word] for at, word in enumerate(words)]
