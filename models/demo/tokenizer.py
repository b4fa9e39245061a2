"""The demo model's tokenizer and chat template, built from rules rather than learnt from text.

Owns: the vocabulary, its order, and the template. Promises: any text survives encode and decode unchanged; every
number from 0 to 999 is one token, ", " and the pieces of common requests are one token each, other printable ASCII
is a token a character, and all else is UTF-8 bytes, one token each.
Must not: import torch, or depend on the training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, END, SYSTEM, USER, ASSISTANT = SPECIAL
NUMBERS = 1000
STARTS = (
    *("Count from ", "Count down from ", "Count up from ", "Count backwards from ", "Can you count from "),
    *("Count up to ", "Count to ", "Count ", "List the numbers from "),
    *("Reverse the word ", "Reverse: ", "Reverse ", "Write the word ", "Write ", "Spell "),
    *("Repeat after me: ", "Repeat the sentence: ", "Repeat this: ", "Repeat: ", "Say: ", "Echo: "),
    *("What is ", "How much is ", "Calculate ", "Add ", "Subtract ", "Please "),
)
"""How common requests begin, each one token, as written and with a small first letter. Only at the start of a message
or behind "Please ": a word that must be spelt, as in "Spell count backwards.", stays letters."""
MIDDLES = (
    *(" to ", " until ", " plus ", " minus ", " + ", " - ", " =", " and ", " from "),
    *(" backwards", ", please", " please"),
)
"""Pieces from the middle and the end of common requests, each one token."""
CONTEXT = 4096

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role in ["system", "developer"] -%}<|system|>
{%- elif message.role == "assistant" -%}<|assistant|>
{%- else -%}<|user|>
{%- endif -%}
{%- if message.content is string -%}{{ message.content | trim }}
{%- elif message.content -%}
{%- for part in message.content -%}{%- if part.type == "text" -%}{{ part.text | trim }}{%- endif -%}{%- endfor -%}
{%- endif -%}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def _longest_first(phrases: Iterable[str]) -> list[str]:
    return sorted(phrases, key=lambda phrase: (-len(phrase), phrase))


def starts() -> list[str]:
    """Each start in both spellings, longest first, so that the first match is the longest."""
    return _longest_first({form for text in STARTS for form in (text, text[0].lower() + text[1:])})


def split_pattern() -> str:
    opening = "|".join(map(re.escape, starts()))
    inside = "|".join(map(re.escape, _longest_first(MIDDLES)))
    return rf"(?:\A|(?<=[Pp]lease ))(?:{opening})|{inside}|[0-9]{{1,3}}|, "


def vocabulary() -> dict[str, int]:
    """Token text to id: specials, bytes, printable ASCII, pieces of requests, then numbers of two and three digits."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*(chr(code) for code in range(32, 127)), ", ", *starts(), *_longest_first(MIDDLES)]
    tokens += [str(number) for number in range(10, NUMBERS)]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    # No merges: a piece of the split is looked up whole, and falls apart into characters, then bytes, if it is unknown.
    inner = Tokenizer(models.BPE(vocab=vocabulary(), merges=[], byte_fallback=True, ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(split_pattern()), behavior="isolated")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build it and write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(str(folder))
    return tokenizer
