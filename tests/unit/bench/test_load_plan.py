"""When requests go out."""

from __future__ import annotations

import itertools
import random
import statistics

from bench.load_plan import burst, chat, closed_loop, open_loop, poisson, words


def test_poisson_has_the_rate_and_the_spread_of_independent_arrivals() -> None:
    times = poisson(random.Random(1), rate=50.0, seconds=200.0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 200
    assert abs(len(times) - 10_000) < 400  # four standard deviations
    assert abs(statistics.stdev(gaps) / statistics.mean(gaps) - 1) < 0.05  # of an exponential distribution


def test_the_same_seed_gives_the_same_plan() -> None:
    assert poisson(random.Random("a"), 5, 10) == poisson(random.Random("a"), 5, 10)
    assert poisson(random.Random("a"), 5, 10) != poisson(random.Random("b"), 5, 10)


def test_a_burst_has_its_exact_count_within_its_time() -> None:
    times = burst(random.Random(1), 2000, within_s=1.0, at=5.0)
    assert len(times) == 2000
    assert times == sorted(times)
    assert times[0] >= 5.0
    assert times[-1] <= 6.0
    assert burst(random.Random(1), 3) == [0.0, 0.0, 0.0]


def test_prompts_have_their_length_and_differ() -> None:
    rng = random.Random(1)
    first, second = words(rng, 32), words(rng, 32)
    assert len(first.split()) == 32
    assert first != second


def test_a_closed_loop_is_bounded_in_count_and_an_open_one_by_its_times() -> None:
    def body() -> dict[str, object]:
        return chat("m", "hello", 8)

    closed = closed_loop(8, 10.0, 100, body, 60.0)
    assert (closed.concurrency, len(closed.shots)) == (8, 100)
    opened = open_loop("x", [0.5, 1.0], 10.0, body, 60.0)
    assert (opened.concurrency, [shot.at for shot in opened.shots]) == (0, [0.5, 1.0])
