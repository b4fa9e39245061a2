"""Sequences with the same prompt read it once, whoever comes first and whatever happens to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tasks.sampling import Sampling
from tests.contract.engines import outcome, tiny_engine
from workers.engine.base import Event, Request
from workers.engine.batching import BatchingEngine

PROMPT = [(7 * at) % 250 + 1 for at in range(100)]
PAGE = 16


class Counted:
    """An engine, and how many tokens its forwards computed."""

    def __init__(self, engine: BatchingEngine) -> None:
        self.engine, self.computed = engine, 0
        self.events: dict[str, list[Event]] = {}
        backend: Any = engine._backend
        run = backend._run

        def count(futures: Any) -> Any:
            self.computed += sum(future.query_length for future in futures)
            return run(futures)

        backend._run = count

    def step(self) -> None:
        for event in self.engine.step():
            self.events.setdefault(event.rid, []).append(event)

    def finish(self) -> dict[str, list[Event]]:
        while self.engine.has_work():
            self.step()
        return self.events


@pytest.fixture(params=[512, 64])  # the prompt is read in one step, or in two
def counted(request: pytest.FixtureRequest) -> Iterator[Counted]:
    counted = Counted(tiny_engine(page_size=PAGE, max_batch_tokens=request.param))
    yield counted
    counted.engine.close()


def choice(number: int, **fields: Any) -> Request:
    return Request(str(number), PROMPT, Sampling(max_tokens=6, seed=5, temperature=1.0), choice=number, **fields)


def alone(number: int) -> tuple[list[int], str, str | None]:
    engine = Counted(tiny_engine(page_size=PAGE, max_batch_tokens=512))
    engine.engine.submit(choice(number))
    return outcome(engine.finish()[str(number)])


def test_the_choices_of_a_job_share_the_keys_of_its_prompt(counted: Counted) -> None:
    for number in range(4):
        counted.engine.submit(choice(number))
    events = counted.finish()
    assert [outcome(events[str(number)]) for number in range(4)] == [alone(number) for number in range(4)]
    # Whole pages are shared; what is left of the prompt, and five tokens of each answer, are computed by each.
    assert counted.computed <= len(PROMPT) + 3 * PAGE + 4 * 5


def test_the_choices_of_a_job_start_before_those_who_came_after_it() -> None:
    """They wait for their prompt, not for everybody behind them."""
    counted = Counted(tiny_engine(page_size=PAGE, max_num_seqs=2))
    for rid, prompt in (("a0", PROMPT), ("a1", PROMPT), ("b", PROMPT[1:]), ("c", PROMPT[2:]), ("d", PROMPT[3:])):
        counted.engine.submit(Request(rid, prompt, Sampling(max_tokens=4, seed=5)))
    assert list(counted.finish()).index("a1") <= 2
    counted.engine.close()


def test_resumed_choices_share_it_too(counted: Counted) -> None:
    done = {number: alone(number)[0][:3] for number in range(4)}
    for number in range(4):
        counted.engine.submit(choice(number, done=done[number]))
    events = counted.finish()
    for number in range(4):
        assert done[number] + outcome(events[str(number)])[0] == alone(number)[0]
    assert counted.computed <= len(PROMPT) + 3 * PAGE + 4 * (3 + 5)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_choice_that_is_cancelled_holds_up_none(counted: Counted, gone: int) -> None:
    for number in range(3):
        counted.engine.submit(choice(number))
    counted.step()
    counted.engine.cancel(str(gone))
    events = counted.finish()
    assert events[str(gone)][-1].finish == "cancelled"
    for number in {0, 1, 2} - {gone}:
        assert outcome(events[str(number)]) == alone(number)
    assert counted.computed <= 2 * len(PROMPT) + 2 * PAGE + 3 * 6


def test_a_step_that_fails_while_others_wait_changes_no_answer(counted: Counted) -> None:
    for number in range(3):
        counted.engine.submit(choice(number))
    counted.step()
    backend: Any = counted.engine._backend
    run = backend._run

    def fail(_: Any) -> None:
        backend._run = run
        raise MemoryError("made to fail")

    backend._run = fail
    with pytest.raises(MemoryError):
        counted.engine.step()
    counted.engine.recover()
    events = counted.finish()
    assert [outcome(events[str(number)]) for number in range(3)] == [alone(number) for number in range(3)]


def test_a_prompt_that_comes_again_later_is_not_read_again(counted: Counted) -> None:
    counted.engine.submit(choice(0))
    while not counted.events:
        counted.step()
    before = counted.computed
    counted.engine.submit(choice(1))
    counted.finish()
    assert counted.computed - before <= PAGE + 2 * 6
