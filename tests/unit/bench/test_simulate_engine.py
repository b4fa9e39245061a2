"""The simulated engine: its schedule, and that runs of steps are the same as single ones."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulate_engine import Batch, Engine, Sequence, StepCost

COST = StepCost(fixed=0.010, sequence=0.001, prompt=0.0001, context=0.002, budget=100, lanes=8)


def play(engine: Engine) -> list[Sequence]:
    """To the end; those that ended, in order."""
    over = []
    while not math.isinf(engine.due):
        over += engine.finish()[1]
    return over


def test_a_prompt_is_computed_in_chunks_and_gives_the_first_token() -> None:
    engine, sequence = Engine(COST), Sequence(prompt=250, answer=1)
    engine.add(sequence, 1.0)
    play(engine)
    assert sequence.first == sequence.ended == pytest.approx(1.0 + 3 * 0.010 + 250 * 0.0001)
    assert engine.steps == 3
    assert engine.tokens == 1


def test_those_that_decode_come_before_prompts() -> None:
    batch = Batch(budget=10)
    batch.add(Sequence(prompt=10, answer=5))
    assert batch.plan() == (1, 10)
    batch.advance(1, 10)
    batch.add(Sequence(prompt=12, answer=2))
    assert batch.plan() == (1, 9)
    batch.advance(1, 9)
    assert batch.plan() == (1, 3)
    first, _ = batch.advance(1, 3)
    assert [sequence.prompt for sequence in first] == [12]
    assert batch.plan() == (1, 0)


def test_a_run_of_steps_takes_as_long_as_its_steps() -> None:
    single = sum(COST.run(1, 3, 600 + 3 * step) for step in range(50))
    assert COST.run(50, 3, 600) == pytest.approx(single)


@given(st.floats(0.0001, 5.0), st.integers(1, 64), st.integers(0, 100_000))
def test_the_step_under_way_is_the_one_that_is_not_over(seconds: float, sequences: int, keys: int) -> None:
    step = COST.steps_within(seconds, sequences, keys)
    assert COST.run(step, sequences, keys) >= seconds * (1 - 1e-9)
    assert step == 1 or COST.run(step - 1, sequences, keys) <= seconds * (1 + 1e-9)


def test_who_comes_during_a_run_of_steps_joins_at_the_next_one() -> None:
    engine, early, late = Engine(COST), Sequence(1, 1000), Sequence(1, 1)
    engine.add(early, 0.0)
    engine.finish()
    run_began = early.first
    arrival = run_began + 0.5
    assert engine.add(late, arrival)
    steps = COST.steps_within(0.5, 1, 2)
    boundary = run_began + COST.run(steps, 1, 2)
    assert engine.due == pytest.approx(boundary)
    engine.finish()
    engine.finish()
    assert late.first == pytest.approx(boundary + COST.run(1, 1, 2 + steps, 1))


@given(st.integers(0, 10_000))
def test_every_sequence_gets_all_its_tokens_whenever_it_comes(seed: int) -> None:
    rng, engine = random.Random(seed), Engine(COST)
    coming = sorted((rng.random() * 3, rng.randint(1, 300), rng.randint(1, 80)) for _ in range(20))
    sequences, ended = [], []
    for at, prompt, answer in coming:
        while engine.due <= at:
            ended += engine.finish()[1]
        sequences.append(Sequence(prompt, answer))
        engine.add(sequences[-1], at)
    ended += play(engine)
    assert sorted(map(id, ended)) == sorted(map(id, sequences))
    assert engine.tokens == sum(sequence.answer for sequence in sequences)
    assert all(sequence.first <= sequence.ended for sequence in sequences)


def test_who_leaves_takes_its_keys_along() -> None:
    engine, stays, leaves = Engine(COST), Sequence(5, 200), Sequence(5, 200)
    engine.add(stays, 0.0)
    engine.add(leaves, 0.0)
    engine.finish()
    engine.finish()
    now = engine._began + 1.0
    made = engine.made(leaves, now)
    assert 1 < made < 200
    engine.remove(leaves, now)
    assert play(engine) == [stays]
    assert engine._batch.keys == engine._batch.decoding == 0
