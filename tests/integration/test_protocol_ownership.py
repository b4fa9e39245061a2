"""Who may write to a job: claim, step, renew and release, with stale owners, retries and ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.keys import key, queue_of
from tasks.ledger import Answer, Draining
from tests.integration.protocol_attempt import Attempt
from tests.integration.protocol_rig import MODEL, Rig


def refused(rig: Rig, attempt: Attempt) -> None:
    """Whatever this attempt tries is refused and leaves no trace."""
    before = rig.values()
    if not attempt.end:
        attempt.make(2)
    assert attempt.ask(attempt.write()).verdict == "fenced"
    assert attempt.ask(replace(attempt.write(), first=rig.number(attempt.job, "seq") + 1)).verdict == "fenced"
    assert attempt.renew().verdict == "lost"
    assert not attempt.release()
    assert rig.values() == before


def test_a_claim_starts_an_attempt_in_the_log_under_a_lease(rig: Rig) -> None:
    job = rig.new()
    claim = rig.claim("w7")
    assert (claim.spec.id, claim.attempt, claim.seq, claim.strikes) == (job, 1, 1, 0)
    assert claim.fence >= 1
    assert [(str(name), entry) for name, entry in rig.log(job)] == [
        (f"{claim.fence}-1", {"k": "started", "attempt": 1, "tokens": 0})
    ]
    assert rig.leased() == {job}
    assert rig.line() == []
    record = rig.record(job)
    assert (record["state"], record["worker"], record["claim_seq"]) == ("running", "w7", "0")
    assert rig.ledger.claim(MODEL, "w7") is None  # a duplicate ticket finds nothing


def test_a_draining_worker_claims_nothing_and_the_job_keeps_its_place(rig: Rig) -> None:
    job = rig.new()
    rig.ledger.drain("w1")
    assert isinstance(rig.ledger.claim(MODEL, "w1"), Draining)
    assert rig.line() == [job]
    assert rig.claim("w2").spec.id == job


def test_a_claim_drops_what_cannot_run_and_takes_the_next(rig: Rig) -> None:
    gone, ended, late, job = rig.new(), rig.new(), rig.new(deadline_ms=60_000), rig.new()
    rig.redis.delete(key("job", gone))
    score = rig.redis.zscore(key("waiting", MODEL), ended)
    rig.wait(rig.store.cancel(ended))
    rig.redis.zadd(key("waiting", MODEL), {ended: score or 0})
    rig.redis.hset(key("job", late), "deadline", 1)
    assert rig.claim().spec.id == job
    assert rig.line() == []
    assert (rig.state(late), rig.code(late)) == ("failed", "deadline_exceeded")
    assert rig.kinds(late) == rig.kinds(ended) == ["end"]


def test_a_claim_looks_at_a_bounded_number_of_jobs(rig: Rig) -> None:
    for number in range(40):
        rig.redis.zadd(key("waiting", MODEL), {f"job_{number}": number})
    assert rig.ledger.claim(MODEL, "w1") is None
    assert rig.redis.zcard(key("waiting", MODEL)) == 8


def test_race_1_nobody_writes_after_the_terminal_entry(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(end="succeeded").send()
    zombie = replace(attempt.write(0), first=rig.number(attempt.job, "seq") + 1, end="")
    before = rig.values()
    assert attempt.ask(zombie) == Answer("fenced")
    assert rig.values() == before


@pytest.mark.parametrize("how", ["lease", "release"])
def test_race_1_between_requeue_and_the_next_claim_the_former_owner_writes_nothing(rig: Rig, how: str) -> None:
    attempt = rig.running()
    attempt.make(1).send()
    if how == "lease":
        rig.lose(attempt.job)
    else:
        assert attempt.release()
    assert (rig.state(attempt.job), rig.line(), rig.leased()) == ("queued", [attempt.job], set())
    assert rig.number(attempt.job, "fence") > attempt.fence
    refused(rig, attempt)


def test_race_1_and_12_a_zombie_neither_writes_into_nor_renews_the_next_attempt(rig: Rig) -> None:
    first = rig.running()
    first.make(2).send()
    rig.lose(first.job)
    second = rig.attempt("w2")
    assert (second.claim.attempt, second.index, second.claim.seq) == (2, 2, 4)
    assert second.fence > first.fence
    lease = rig.redis.zscore("penstock:leases", first.job)
    refused(rig, first)
    assert rig.redis.zscore("penstock:leases", first.job) == lease
    assert second.make(1, end="succeeded").send() == "ok"
    assert [entry["i"] for _, entry in rig.log(first.job) if entry["k"] == "delta"] == [0, 1, 2]
    assert [name.seq for name, _ in rig.log(first.job)] == [1, 2, 3, 4, 5, 6]


def test_a_fence_rises_even_when_the_clock_went_back(rig: Rig) -> None:
    attempt = rig.running()
    rig.redis.hincrby(key("job", attempt.job), "created", 60_000)
    assert attempt.release()
    assert rig.number(attempt.job, "fence") == attempt.fence + 1
    assert rig.attempt().fence == attempt.fence + 2


@pytest.mark.parametrize("how", ["lease", "release"])
def test_race_8_a_cancel_outlives_its_owner(rig: Rig, how: str) -> None:
    attempt = rig.running()
    attempt.make(2).send()
    rig.wait(rig.store.cancel(attempt.job))
    if how == "lease":
        rig.lose(attempt.job)
    else:
        assert attempt.release()
    assert rig.state(attempt.job) == "cancelled"
    assert rig.log(attempt.job)[-1][1] == {"k": "end", "state": "cancelled", "tokens": 2, "code": "cancelled"}
    assert rig.line() == []
    assert rig.ledger.claim(MODEL, "w2") is None
    refused(rig, attempt)


def test_a_job_in_line_whose_cancel_was_accepted_is_not_claimed(rig: Rig) -> None:
    job = rig.new()
    rig.redis.hset(key("job", job), "cancel", 1)  # no script leaves it so; the claim does not rely on that
    assert rig.ledger.claim(MODEL, "w1") is None
    assert rig.state(job) == "cancelled"


def test_race_20_the_deadline_belongs_to_the_job_not_to_the_attempt(rig: Rig) -> None:
    attempt = rig.running(deadline_ms=60_000)
    deadline = rig.number(attempt.job, "deadline")
    assert attempt.make().send() == "ok"
    rig.lose(attempt.job)
    attempt = rig.attempt()
    assert rig.number(attempt.job, "deadline") == deadline
    assert rig.number(attempt.job, "tokens") == 1  # usage is counted over the log, not over the attempt
    rig.redis.hset(key("job", attempt.job), "deadline", 1)
    assert attempt.make().send() == "deadline"
    assert attempt.renew() == Answer("deadline")
    assert attempt.release()
    assert rig.code(attempt.job) == "deadline_exceeded"
    assert rig.log(attempt.job)[-1][1]["tokens"] == 2


def test_renewal_prolongs_the_lease_of_each_job_by_its_owner(rig: Rig) -> None:
    attempt = rig.running()
    rig.pass_by("leases", attempt.job)
    assert attempt.renew() == Answer("ok")
    assert (rig.redis.zscore("penstock:leases", attempt.job) or 0) > rig.now()
    rig.reap()
    assert rig.state(attempt.job) == "running"
    assert rig.ledger.renew([]) == []


def test_race_9_a_requeued_job_keeps_its_place(rig: Rig) -> None:
    first, second = rig.running(), rig.running()
    third = rig.new()
    assert second.release()
    assert first.release()
    assert rig.line() == [first.job, second.job, third]
    urgent = rig.new(priority="interactive")
    assert rig.line()[0] == urgent  # it is not put before what is more urgent
    assert rig.tickets() >= 4


def test_release_adds_neither_strike_nor_loss(rig: Rig) -> None:
    attempt = rig.running()
    assert attempt.release()
    assert (rig.number(attempt.job, "strikes"), rig.number(attempt.job, "losses")) == (0, 0)
    assert rig.redis.llen(queue_of(MODEL)) >= 1
