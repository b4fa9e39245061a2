"""Preemption in the store: a running job goes back into line with its tokens, by one call."""

from __future__ import annotations

import pytest

from tasks.keys import key
from tasks.ledger import Answer
from tests.integration.protocol_rig import Rig


def preempt(rig: Rig, job: str) -> str:
    return rig.wait(rig.store.preempt(job))


def test_a_preempted_job_goes_back_into_line_with_its_tokens_and_without_blame(rig: Rig) -> None:
    first = rig.running(api="a1")
    first.make(3).send()
    ear, before = rig.listen("a1"), rig.log(first.job)
    assert preempt(rig, first.job) == "preempted"
    record = rig.record(first.job)
    assert (record["state"], record["worker"], record["tokens"]) == ("queued", "", "3")
    assert (record["strikes"], record["losses"]) == ("0", "0")
    assert (rig.line(), rig.leased()) == ([first.job], set())
    assert rig.tickets() >= 1
    assert rig.number(first.job, "fence") > first.fence
    assert first.make(2).send() == "fenced"  # how its worker learns of it, in its next step
    assert first.renew() == Answer("lost")  # or here, if it has made nothing meanwhile
    assert not first.release()
    assert (rig.log(first.job), ear.heard()) == (before, [])  # what was refused is not published
    second = rig.attempt("w2")
    assert (second.job, second.claim.attempt, second.index, second.claim.strikes) == (first.job, 2, 3, 0)
    assert second.make(1, end="succeeded").send() == "ok"
    assert [entry["i"] for _, entry in rig.log(first.job) if entry["k"] == "delta"] == [0, 1, 2, 3]


def test_a_more_urgent_job_takes_the_lane_and_the_preempted_one_keeps_its_place(rig: Rig) -> None:
    running, behind = rig.running(), rig.new()
    urgent = rig.new(priority="interactive")
    assert preempt(rig, running.job) == "preempted"
    assert rig.line() == [urgent, running.job, behind]
    assert [rig.claim().spec.id for _ in range(3)] == [urgent, running.job, behind]


@pytest.mark.parametrize("why", ["cancel", "deadline"])
def test_a_preempted_job_that_was_to_end_ends(rig: Rig, why: str) -> None:
    attempt = rig.running(deadline_ms=60_000)
    attempt.make(2).send()
    if why == "cancel":
        rig.wait(rig.store.cancel(attempt.job))
    else:
        rig.redis.hset(key("job", attempt.job), "deadline", 1)
    state = "cancelled" if why == "cancel" else "failed"
    assert preempt(rig, attempt.job) == f"ended {state}"
    assert rig.state(attempt.job) == state
    assert (rig.log(attempt.job)[-1][1]["k"], rig.log(attempt.job)[-1][1]["tokens"]) == ("end", 2)
    assert (rig.line(), rig.leased()) == ([], set())
    assert preempt(rig, attempt.job) == f"already {state}"


def test_what_does_not_run_is_not_preempted(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(1, end="succeeded").send()
    waiting = rig.new()
    before = rig.values()
    assert preempt(rig, "job_" + "x" * 24) == "gone"
    assert preempt(rig, waiting) == "already queued"
    assert preempt(rig, attempt.job) == "already succeeded"
    assert rig.values() == before


def test_preempting_again_and_again_never_makes_a_job_poison(rig: Rig) -> None:
    job = rig.new()
    for number in range(30):
        assert rig.attempt().claim.attempt == number + 1
        assert preempt(rig, job) == "preempted"
    assert (rig.state(job), rig.number(job, "strikes"), rig.number(job, "losses")) == ("queued", 0, 0)
    assert rig.tickets() <= 30  # one for each claim that is due, none piles up


def test_a_suspect_stays_one(rig: Rig) -> None:
    """It has not proved itself: preemption neither blames nor clears."""
    attempt = rig.running()
    rig.lose(attempt.job)
    assert rig.attempt().claim.strikes == 1
    assert preempt(rig, attempt.job) == "preempted"
    assert rig.claim().strikes == 1
