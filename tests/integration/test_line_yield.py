"""A batch job gives its lane, with its tokens, to an interactive job that finds none free. In the store, rule by rule."""

from __future__ import annotations

import pytest

from tasks.keys import key
from tests.integration.protocol_attempt import Attempt
from tests.integration.protocol_rig import MODEL, Rig


def step(rig: Rig, *attempts: Attempt, lacking: int = 1) -> list[str]:
    """One engine step of a worker: a token for each."""
    answers = rig.ledger.step([attempt.make().write() for attempt in attempts], lacking)
    for attempt in attempts:
        attempt.sent = len(attempt.tail)
    return [answer.verdict for answer in answers]


def batch_jobs(rig: Rig, count: int) -> list[Attempt]:
    return [rig.running(priority="batch") for _ in range(count)]


def urgent_jobs(rig: Rig, count: int = 1, waited_ms: int = 1000) -> list[str]:
    jobs = [rig.new(priority="interactive") for _ in range(count)]
    for job in jobs:
        rig.redis.hincrby(key("job", job), "created", -waited_ms)
    return jobs


def test_the_batch_job_that_stood_last_yields_with_its_tokens_and_without_blame(rig: Rig) -> None:
    first, second = batch_jobs(rig, 2)
    assert step(rig, first, second) == ["ok", "ok"]
    (urgent,) = urgent_jobs(rig)
    assert step(rig, first, second) == ["ok", "yield"]
    record = rig.record(second.job)
    assert (record["state"], record["tokens"], record["strikes"], record["losses"]) == ("queued", "2", "0", "0")
    assert rig.line() == [urgent, second.job]
    assert second.make().send() == "fenced"
    assert rig.claim().spec.id == urgent
    again = rig.attempt()
    assert (again.job, again.index) == (second.job, 2)


def test_one_lane_after_the_other_and_no_more_than_are_wanted(rig: Rig) -> None:
    here, there = batch_jobs(rig, 3), batch_jobs(rig, 3)
    urgent = urgent_jobs(rig, 2)
    assert step(rig, *here) == ["ok", "ok", "yield"]
    assert step(rig, *there) == ["ok", "ok", "yield"]
    assert step(rig, *here[:2]) == ["ok", "ok"]  # two lanes are on their way already
    assert [rig.claim().spec.id for _ in urgent] == urgent
    assert not rig.redis.exists(key("yielding", MODEL))
    urgent_jobs(rig)
    assert step(rig, *here[:2]).count("yield") == 1


def test_a_lane_that_falls_free_by_itself_is_on_its_way_too(rig: Rig) -> None:
    ending = rig.running()
    (batch,) = batch_jobs(rig, 1)
    (urgent,) = urgent_jobs(rig)
    ending.make(end="succeeded").send()
    assert step(rig, batch) == ["ok"]
    assert rig.claim().spec.id == urgent
    urgent_jobs(rig)
    assert step(rig, batch) == ["yield"]


def test_batch_jobs_that_make_no_room_together_stay(rig: Rig) -> None:
    jobs = batch_jobs(rig, 2)
    urgent_jobs(rig)
    assert step(rig, *jobs, lacking=3) == ["ok", "ok"]
    assert step(rig, *jobs, lacking=2) == ["ok", "yield"]


def test_a_lane_given_up_and_never_taken_is_forgotten(rig: Rig) -> None:
    jobs = batch_jobs(rig, 2)
    urgent_jobs(rig)
    assert step(rig, *jobs).count("yield") == 1
    assert 0 < rig.redis.pttl(key("yielding", MODEL)) <= 2000


@pytest.mark.parametrize("case", ["a free lane", "just came", "not urgent", "not batch", "aged", "another model"])
def test_nobody_yields(rig: Rig, case: str) -> None:
    job = rig.new(priority="normal" if case == "not batch" else "batch")
    if case == "aged":  # it waited so long that it was let in before more urgent ones: else it would never end
        rig.redis.hincrby(key("job", job), "created", -61_000)
        rig.redis.hset(key("fair", MODEL), "claims", 9)
        urgent_jobs(rig)
    attempt = rig.attempt()
    assert attempt.job == job
    if case == "not urgent":
        rig.redis.hincrby(key("job", rig.new()), "created", -1000)
    elif case == "another model":
        rig.new(priority="interactive", model="other")
    else:
        urgent_jobs(rig, waited_ms=0 if case == "just came" else 1000)
    assert step(rig, attempt, lacking=int(case != "a free lane")) == ["ok"]


def test_a_batch_job_that_was_to_end_ends_instead(rig: Rig) -> None:
    (attempt,) = batch_jobs(rig, 1)
    rig.wait(rig.store.cancel(attempt.job))
    urgent_jobs(rig)
    assert step(rig, attempt) == ["cancel"]
    assert rig.state(attempt.job) == "running"
