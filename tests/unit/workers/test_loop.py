"""The engine loop with the scripted engine: a suspect runs alone, and nobody notices in the text."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tasks.events import Delta, End
from tests.processes import wait_until
from tests.unit.workers.parts import claimed, make_ledger
from workers.attempt import Attempt
from workers.engine import registry
from workers.engine.registry import EngineSpec
from workers.loop import EngineLoop
from workers.publisher import Publisher

TEXT = "[tokens=200] [step_ms=2]"
SLOW = "[tokens=15] [step_ms=300]"


class Bench:
    """A loop that runs, with a publisher that does not write until it is told to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ledger = make_ledger(url)
        self.loop = EngineLoop(lambda: registry.build("fake", EngineSpec("", max_num_seqs=4)))
        self.publisher = Publisher(self.ledger, self.loop, lambda: None, lambda: 0)
        self.threads = [threading.Thread(target=self.loop.run, args=(self.publisher,))]
        self.threads[0].start()
        assert self.loop.loaded.wait(10)

    def write(self) -> None:
        self.threads.append(threading.Thread(target=self.publisher.run))
        self.threads[1].start()

    def close(self) -> None:
        self.loop.exit()
        self.publisher.close()
        for thread in self.threads:
            thread.join(5)
        self.ledger.close()

    def text(self, attempt: Attempt, choice: int = 0) -> str:
        log = self.ledger.read_all(attempt.job)
        return "".join(entry.text for _, entry in log if isinstance(entry, Delta) and entry.choice == choice)


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    bench = Bench(redis_url)
    yield bench
    bench.close()


def unsent(attempt: Attempt, at_least: int) -> int:
    wait_until(lambda: attempt.outbox.unsent() >= at_least, f"{at_least} entries", every_s=0.001)
    return attempt.outbox.unsent()


def test_a_suspect_runs_alone_until_its_first_token_is_logged(bench: Bench) -> None:
    neighbours = [claimed(bench.url, bench.ledger, TEXT), claimed(bench.url, bench.ledger, TEXT, n=2)]
    suspect, late = claimed(bench.url, bench.ledger, TEXT), claimed(bench.url, bench.ledger, TEXT)
    for attempt in neighbours:
        bench.loop.submit(attempt)
    for attempt in neighbours:
        unsent(attempt, 5)
    suspect.suspect = True
    bench.loop.submit(suspect)
    bench.loop.submit(late)
    unsent(suspect, 1)
    before = [attempt.outbox.unsent() for attempt in neighbours]
    unsent(suspect, 20)
    assert [attempt.outbox.unsent() for attempt in neighbours] == before
    assert late.outbox.unsent() == 0
    bench.write()
    for attempt in [*neighbours, suspect, late]:
        assert attempt.wait(20)
        assert attempt.outcome == "succeeded"
    whole = bench.text(suspect)
    assert len(whole.split()) == 200
    assert {bench.text(late), bench.text(neighbours[0])} == {whole}
    assert bench.text(neighbours[1], 0) == bench.text(neighbours[1], 1) == whole


def test_a_withdrawn_job_can_be_cancelled(bench: Bench) -> None:
    neighbour, suspect = claimed(bench.url, bench.ledger, TEXT), claimed(bench.url, bench.ledger, TEXT)
    bench.loop.submit(neighbour)
    unsent(neighbour, 3)
    suspect.suspect = True
    bench.loop.submit(suspect)
    unsent(suspect, 1)
    neighbour.stopping = "cancel"
    bench.loop.stop(neighbour)
    wait_until(lambda: neighbour.complete, "the end of the cancelled job")
    bench.write()
    assert neighbour.wait(5)
    assert neighbour.outcome == "cancelled"
    assert suspect.wait(10)
    assert suspect.outcome == "succeeded"


def test_a_job_that_is_cancelled_while_a_suspect_arrives_ends(bench: Bench) -> None:
    neighbour, suspect = claimed(bench.url, bench.ledger, SLOW), claimed(bench.url, bench.ledger, SLOW)
    bench.write()
    bench.loop.submit(neighbour)
    wait_until(lambda: neighbour.outbox.progressed, "a token")
    wait_until(lambda: 0 < bench.loop.step_age() < 0.1, "the begin of a step", every_s=0.001)
    suspect.suspect = True
    neighbour.stopping = "cancel"
    bench.loop.stop(neighbour)  # both are obeyed between the same two steps
    bench.loop.submit(suspect)
    assert neighbour.wait(3)
    assert neighbour.outcome == "cancelled"
    assert suspect.wait(10)
    assert suspect.outcome == "succeeded"


def test_a_job_that_was_lost_leaves_the_engine(bench: Bench) -> None:
    attempt = claimed(bench.url, bench.ledger, TEXT)
    bench.loop.submit(attempt)
    unsent(attempt, 3)
    attempt.over("lost")
    bench.loop.remove(attempt)
    engine = bench.loop.engine
    assert engine is not None
    wait_until(lambda: engine.load().running == 0, "an empty engine")
    count = attempt.outbox.unsent()
    other = claimed(bench.url, bench.ledger, "Count from 1 to 5.")
    bench.loop.submit(other)
    bench.write()
    assert other.wait(5)
    assert attempt.outbox.unsent() == count


def test_an_invalid_request_ends_only_its_job(bench: Bench) -> None:
    bench.write()
    bad = claimed(bench.url, bench.ledger, "", n=2)
    good = claimed(bench.url, bench.ledger, "Count from 1 to 5.")
    bench.loop.submit(bad)
    bench.loop.submit(good)
    assert bad.wait(5)
    assert good.wait(5)
    assert (bad.outcome, good.outcome) == ("failed", "succeeded")
    end = bench.ledger.read_all(bad.job)[-1][1]
    assert isinstance(end, End)
    assert (end.code, end.message) == ("invalid_request", "the prompt is empty")


def test_the_loop_tells_a_long_call_from_idleness(bench: Bench) -> None:
    assert bench.loop.step_age() == 0
    attempt = claimed(bench.url, bench.ledger, "[tokens=5] [step_ms=400]")
    bench.loop.submit(attempt)
    wait_until(lambda: bench.loop.step_age() > 0.2, "a long step", every_s=0.005)
    bench.write()
    assert attempt.wait(10)
    wait_until(lambda: bench.loop.step_age() == 0, "an idle engine")
