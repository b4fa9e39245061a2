"""Copies of keys and values: whoever comes, goes, grows or comes again, answers are those without any copies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sampling import Sampling
from tests.contract.engines import outcome, tiny_engine
from workers.engine.base import Event, Request
from workers.engine.batching import BatchingEngine
from workers.engine.dense import DenseCopies, Group, Shape, length_of_place

SHAPE = Shape((0, 1), 2, 4, torch.float32)


def dense_of(engine: BatchingEngine) -> Any:
    backend: Any = engine._backend
    return backend._kv


def run(engine: BatchingEngine, requests: list[Request], late: int = 0, cancelled: str = "") -> dict[str, list[Event]]:
    """The last `late` requests come one by one while the others run; one is cancelled on the way."""
    events: dict[str, list[Event]] = {}
    waiting = requests[len(requests) - late :]
    for request in requests[: len(requests) - late]:
        engine.submit(request)
    steps = 0
    while engine.has_work() or waiting:
        if waiting and steps % 3 == 2:
            engine.submit(waiting.pop(0))
        if steps == 9 and cancelled:
            engine.cancel(cancelled)
        for event in engine.step():
            events.setdefault(event.rid, []).append(event)
        steps += 1
    return events


def some_requests(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [
        Request(
            str(number),
            [rng.randrange(1, 250) for _ in range(rng.choice((1, 5, 30, 62, 90, 130)))],
            Sampling(max_tokens=rng.choice((1, 3, 20, 70)), seed=number, temperature=1.0),
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def plain() -> Iterator[BatchingEngine]:
    """Gathers pages at every step."""
    engine = tiny_engine()
    dense_of(engine).dense = None
    yield engine
    engine.close()


@pytest.mark.parametrize("share", [1.0, 0.15, 0.0], ids=["all", "some", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_without_copies(plain: BatchingEngine, seed: int, share: float) -> None:
    engine = tiny_engine(max_num_seqs=14)
    copies: DenseCopies = dense_of(engine).dense
    copies._limit = int(copies._limit * share)
    requests = some_requests(14, seed)
    found = run(engine, requests, late=6, cancelled="2")
    assert len(found) == 14
    for request in requests:
        if found[request.rid][-1].finish != "cancelled":
            assert outcome(found[request.rid]) == outcome(run(plain, [request])[request.rid])
    engine.close()


def test_a_name_that_comes_again_gets_no_copy_of_the_former_one(plain: BatchingEngine) -> None:
    """The second prompt shares all of its pages but for one token: that step looks like one more of the first answer."""
    engine = tiny_engine()
    sampling = Sampling(max_tokens=30, seed=1, temperature=0.0)
    shared, size = [9, 8] * 16, dense_of(engine).page_size
    assert len(shared) == 2 * size
    run(engine, [Request("b", [*shared, 3], Sampling(max_tokens=1, seed=1))])
    engine.submit(Request("a", [7] * (len(shared) - 2), sampling))
    for _ in range(3):
        engine.step()
    assert dense_of(engine).dense._held == {"a": len(shared)}
    engine.cancel("a")
    engine.step()
    second = Request("a", [*shared, 4], sampling)
    assert outcome(run(engine, [second])["a"]) == outcome(run(plain, [second])["a"])
    engine.close()


def test_a_reset_forgets_copies_that_hold_no_numbers(plain: BatchingEngine) -> None:
    engine = tiny_engine()
    sampling = Sampling(max_tokens=12, seed=1, temperature=0.0)
    first, second = Request("a", [5] * 50, sampling), Request("b", [6] * 3, sampling)
    engine.submit(first)
    events = [event for _ in range(3) for event in engine.step()]
    for group in dense_of(engine).dense._groups.values():
        for tensor in [*group.keys.values(), *group.values.values()]:
            with torch.inference_mode():
                tensor.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        engine.step()
    engine.recover()
    for _ in range(3):
        events += engine.step()
    events += run(engine, [second])["a"]  # it stands beside the first, with less than the first has
    assert outcome(events) == outcome(run(plain, [first])["a"])
    engine.close()


def test_copies_are_given_up_with_a_reset_and_at_the_end() -> None:
    engine = tiny_engine(max_batch_tokens=32)
    engine.submit(Request("a", [5] * 70, Sampling(max_tokens=3, seed=1)))
    while engine.has_work():
        engine.step()
    copies = dense_of(engine)
    assert copies._room
    engine._backend.reset()
    assert not copies._room
    assert not copies.dense._groups
    engine.close()


def test_places_that_nobody_is_in_make_room_for_others() -> None:
    copies = DenseCopies(SHAPE, SHAPE.bytes_of(8, 96))
    assert [group.places for group in copies.arrange(["a"], [10])] == [["a"]]
    assert [group.places for group in copies.arrange(["a", "b"], [11, 80])] == [["a"]]
    assert [group.places for group in copies.arrange(["b"], [81])] == [["b"]]


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_whoever_has_a_place_has_a_right_copy_or_gets_one(data: st.DataObject) -> None:
    """A small world: what each place holds is written down by hand, as attention would."""
    limit = data.draw(st.sampled_from([0, SHAPE.bytes_of(8, 64), SHAPE.bytes_of(16, 96), 10**9]))
    copies = DenseCopies(SHAPE, limit)
    lengths: dict[str, int] = {}
    capacities: dict[int, int] = {}
    held: dict[tuple[int, int], tuple[str, int]] = {}  # group and place: whose, and how many tokens
    for step in range(data.draw(st.integers(1, 12))):
        for rid in [rid for rid in lengths if data.draw(st.integers(0, 4)) == 0]:
            del lengths[rid]
            copies.forget(rid)
        for number in range(data.draw(st.integers(0, 6))):
            lengths[f"{step}.{number}"] = data.draw(st.integers(1, 130))
        for rid in lengths:
            lengths[rid] += data.draw(st.sampled_from([1, 1, 1, 2]))
        groups = copies.arrange(list(lengths), list(lengths.values()))
        placed = [rid for group in groups for rid in group.places]
        assert len(placed) == len(set(placed))
        assert sum(SHAPE.bytes_of(group.capacity, group.length) for group in copies._groups.values()) <= limit
        if limit == 10**9:
            assert set(placed) == set(lengths)
        for group in groups:
            if capacities.get(group.length) != group.capacity:  # new memory
                held = {place: whose for place, whose in held.items() if place[0] != group.length}
            capacities[group.length] = group.capacity
            check_group(group, lengths, held)
        capacities = {length: group.capacity for length, group in copies._groups.items()}


def check_group(group: Group, lengths: dict[str, int], held: dict[tuple[int, int], tuple[str, int]]) -> None:
    assert len(group.places) <= group.capacity
    assert group.fresh <= set(range(len(group.places)))
    for place, rid in enumerate(group.places):
        assert lengths[rid] <= group.length
        if place not in group.fresh:  # one token is added to what is there
            assert held[group.length, place] == (rid, lengths[rid] - 1)
        held[group.length, place] = rid, lengths[rid]


def test_places_are_little_longer_than_what_is_in_them() -> None:
    sizes = {length_of_place(length) for length in range(1, 5000)}
    assert sorted(sizes)[:7] == [64, 96, 128, 192, 256, 384, 512]
    for length in range(65, 5000):
        assert length <= length_of_place(length) < 1.51 * length
