"""The demo model's data: exact answers, and a split that shares nothing between training and held-out prompts."""

from __future__ import annotations

import random
import re

import pytest

from models.demo import phrases
from models.demo.data import (
    MAX_COUNT,
    SKILLS,
    Exchange,
    count_answer,
    held_out_conversations,
    is_held_out,
)
from models.demo.words import WORDS


def drawn(skill: str, held_out: bool, number: int) -> list[Exchange]:
    rng = random.Random(7)
    return [SKILLS[skill](rng, held_out) for _ in range(number)]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(3, 6, "3, 4, 5, 6"), (9, 2, "9, 8, 7, 6, 5, 4, 3, 2"), (5, 5, "5"), (998, 999, "998, 999"), (1, 0, "1, 0")],
)
def test_a_count_includes_both_ends(first: int, last: int, expected: str) -> None:
    assert count_answer(first, last) == expected


def test_counts_answer_their_own_prompt_and_keep_the_bounds() -> None:
    for exchange in drawn("count", False, 2000):
        asked = [int(found) for found in re.findall(r"\d+", exchange.prompt)]
        first, last = asked if len(asked) == 2 else (1, asked[0])
        assert exchange.answer == count_answer(first, last)
        numbers = exchange.answer.split(", ")
        assert len(numbers) <= MAX_COUNT
        assert all(0 <= int(number) <= 999 for number in numbers)


def test_arithmetic_answers_are_right_and_may_be_negative() -> None:
    negative = 0
    for exchange in drawn("arithmetic", False, 2000):
        first, second = (int(found) for found in re.findall(r"\d+", exchange.prompt))
        if "ubtract" in exchange.prompt:
            expected = second - first
        elif "-" in exchange.prompt or "minus" in exchange.prompt:
            expected = first - second
        else:
            expected = first + second
        assert exchange.answer == str(expected), exchange.prompt
        negative += expected < 0
    assert negative


def test_a_reversed_word_and_a_repeated_sentence_are_in_their_prompts() -> None:
    for exchange in drawn("reverse", False, 500):
        assert exchange.answer[::-1].lower() in exchange.prompt.lower()
    for exchange in drawn("repeat", False, 500):
        assert exchange.prompt.endswith(exchange.answer)


@pytest.mark.parametrize("skill", list(SKILLS))
def test_no_held_out_key_or_prompt_is_drawn_for_training(skill: str) -> None:
    trained = drawn(skill, False, 5000)
    held_out = drawn(skill, True, 500)
    assert not {exchange.key for exchange in trained} & {exchange.key for exchange in held_out}
    assert all(is_held_out(exchange.key) for exchange in held_out)


def test_a_held_out_number_pair_is_unseen_in_either_order_and_with_either_sign() -> None:
    pairs = [
        {tuple(sorted(re.findall(r"\d+", exchange.prompt))) for exchange in drawn("arithmetic", held_out, number)}
        for held_out, number in ((False, 20_000), (True, 500))
    ]
    assert not pairs[0] & pairs[1]


@pytest.mark.parametrize("skill", list(SKILLS))
def test_a_hundred_distinct_held_out_prompts_exist_and_are_the_same_each_time(skill: str) -> None:
    once = list(held_out_conversations(skill, 100))
    assert once == list(held_out_conversations(skill, 100))
    assert len({conversation.exchanges[-1].prompt for conversation in once}) == 100
    assert any(len(conversation.exchanges) > 1 for conversation in once)
    for conversation in once:
        assert conversation.messages()[-1] == {"role": "user", "content": conversation.exchanges[-1].prompt}


def test_fixed_lines_take_several_bytes_a_character() -> None:
    for line, width in ((phrases.CHINESE, 3), (phrases.ARABIC, 2), (phrases.EMOJI, 4)):
        assert any(len(character.encode()) >= width for character in line)


def test_words_are_plain_and_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
