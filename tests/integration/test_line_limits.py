"""Limits: of a model's line, of a tenant's jobs, of its rates. A refusal leaves nothing behind and costs nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.errors import QueueFull, RateLimited
from tasks.keys import key, queue_of, single
from tasks.rates import Rate, Rates
from tasks.sampling import Sampling
from tasks.tenants import Tenant
from tests.integration.protocol_rig import MODEL, Rig


def tenant(**limits: Any) -> Tenant:
    return Tenant(name="t", **limits)


def waiting(rig: Rig) -> dict[str, str]:
    return dict(rig.redis.hgetall(key("length", MODEL)))


def test_a_line_is_bounded_in_tokens(rig: Rig) -> None:
    first = rig.new(token_limit=25)  # two of prompt, eight of answer
    second = rig.new(token_limit=25)
    before = rig.values()
    with pytest.raises(QueueFull, match="20 tokens already wait"):
        rig.submit(token_limit=25, idem="k", api="a1", listed=True, deadline_ms=1000)
    assert rig.values() == before
    assert waiting(rig) == {"tokens 1": "20", "answers 1": "16", "jobs": "2", "jobs default": "2"}
    assert rig.claim().spec.id == first
    assert rig.new(token_limit=25)
    rig.wait(rig.store.cancel(second))
    assert waiting(rig) == {"tokens 1": "10", "answers 1": "8", "jobs": "1", "jobs default": "1"}
    rig.claim()
    assert waiting(rig) == {}
    assert rig.new(token_limit=5)  # an empty line takes any job


def test_what_is_expected_of_an_answer_is_what_answers_were(rig: Rig) -> None:
    for tokens in (4, 8):
        rig.running().make(tokens, end="succeeded").send()
    assert float(rig.redis.hget(key("pace", MODEL), "answer 1") or 0) == 4.4  # a moving average
    rig.new(sampling=Sampling(max_tokens=1000, seed=1))
    assert waiting(rig)["tokens 1"] == "7"
    rig.new(sampling=Sampling(max_tokens=1000, seed=1), by=Tenant(name="new"))  # nothing is known of its own
    rig.redis.hset(key("pace", MODEL), "answer 1 short", 1)
    rig.new(sampling=Sampling(max_tokens=1000, seed=1), by=Tenant(name="short"))
    assert waiting(rig)["tokens 1"] == str(7 + 7 + 3)
    rig.new(sampling=Sampling(max_tokens=1000, seed=1), priority="batch")  # what others ask for says nothing
    assert waiting(rig)["tokens 2"] == str(2 + 256)


def test_a_tenants_jobs_in_line_are_bounded(rig: Rig) -> None:
    by = tenant(max_waiting=2)
    jobs = [rig.new(by=by) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 jobs of t already wait"):
        rig.submit(by=by)
    assert rig.submit().position == 2  # another one is not refused, and stands in turn
    rig.wait(rig.store.cancel(jobs[0]))
    assert not rig.submit(by=by).existing
    assert {rig.claim().spec.tenant for _ in range(2)} == {"default", "t"}
    assert not rig.submit(by=by).existing  # running jobs do not count


def test_beyond_its_share_of_lanes_a_tenants_jobs_wait_and_nobody_waits_for_them(rig: Rig) -> None:
    by = tenant(max_running=2)
    mine = [rig.new(by=by) for _ in range(5)]
    others = [rig.new(), rig.new()]
    held = [rig.attempt() for _ in range(4)]
    assert {one.job for one in held} == {*mine[:2], *others}
    assert rig.ledger.claim(MODEL, "w1") is None  # a free lane, and three jobs that may not have it
    assert (rig.line(), rig.wait(rig.store.positions(mine[2:]))) == ([], [1, 2, 3])
    late = rig.submit(by=by)
    assert late.position == 4
    assert rig.submit().position == 1
    rig.claim()
    first = next(one for one in held if one.job == mine[0])
    first.make(end="succeeded").send()
    assert rig.line() == [mine[2]]
    assert rig.tickets() >= 1
    assert rig.claim().spec.id == mine[2]
    rig.lose(mine[1])  # one that loses its worker comes back, and has its own place
    assert rig.claim().spec.id == mine[1]
    assert rig.ledger.claim(MODEL, "w1") is None


def test_parked_jobs_are_in_nobodys_way_but_their_tenants(rig: Rig) -> None:
    by = tenant(max_running=1)
    rig.new(by=by)
    rig.claim()
    rig.new(by=by)
    line = rig.wait(rig.store.line(MODEL))
    assert (rig.line(), line.waiting, line.standing) == ([], 1, (0, 0, 0))
    with pytest.raises(QueueFull, match="1 jobs of t already wait"):
        rig.submit(by=by, limit=1)
    assert rig.submit(limit=1, token_limit=1).position == 1


def test_less_urgent_jobs_do_not_fill_the_line_of_more_urgent_ones(rig: Rig) -> None:
    for _ in range(3):
        rig.new(priority="batch", limit=3)
    for band, before in (("batch", 3), ("normal", 0), ("interactive", 0)):
        if before:
            with pytest.raises(QueueFull):
                rig.submit(priority=band, limit=3, token_limit=30)
        else:
            assert rig.submit(priority=band, limit=1, token_limit=10).position == 1
    line = rig.wait(rig.store.line(MODEL))
    assert (line.standing, [line.before(band) for band in range(3)]) == ((1, 1, 3), [1, 2, 5])


def test_a_count_of_records_that_are_gone_is_forgotten(rig: Rig) -> None:
    job = rig.new()
    rig.redis.delete(key("job", job))
    assert rig.ledger.claim(MODEL, "w1") is None
    assert waiting(rig) != {}
    rig.reap()
    assert waiting(rig) == {}


def test_what_ends_while_it_is_parked_leaves_no_trace(rig: Rig) -> None:
    by = tenant(max_running=1)
    rig.new(by=by)
    attempt, parked, due = rig.attempt(), rig.new(by=by), rig.new(by=by, deadline_ms=60_000)
    assert rig.wait(rig.store.cancel(parked)) == "cancelled"
    rig.redis.hset(key("job", due), "deadline", 1)
    rig.pass_by("deadlines", due)
    rig.reap()
    assert (rig.state(due), rig.code(due)) == ("failed", "deadline_exceeded")
    attempt.make(end="succeeded").send()
    for family in ("parked", "active"):
        assert not rig.redis.exists(key(family, f"{MODEL}:t"))
    assert not rig.redis.exists(single("parks"))
    assert waiting(rig) == {}


def test_a_parked_record_that_cannot_be_read_stops_nobody(rig: Rig) -> None:
    by = tenant(max_running=1)
    rig.new(by=by)
    rig.claim()
    bad, good = rig.new(by=by), rig.new(by=by)
    rig.redis.hset(key("job", bad), "share", "?")
    lost = rig.new()
    rig.redis.delete(queue_of(MODEL))
    rig.reap()
    assert rig.tickets() == 1
    assert (rig.parked("t"), rig.line()) == ([good], [lost])


def test_the_turns_of_a_line_that_stands_for_days_are_kept(rig: Rig) -> None:
    rig.new()
    rig.redis.expire(key("fair", MODEL), 5)
    rig.reap()
    assert rig.redis.ttl(key("fair", MODEL)) > 80_000


def test_an_end_in_line_brings_a_parked_job_too(rig: Rig) -> None:
    by = tenant(max_running=1)
    rig.new(by=by)
    attempt, second, third = rig.attempt(), rig.new(by=by), rig.new(by=by)
    attempt.make(end="succeeded").send()
    assert rig.line() == [second]
    rig.wait(rig.store.cancel(second))
    assert rig.line() == [third]


def test_parked_jobs_whose_turn_redis_forgot_come_back_at_a_reap(rig: Rig) -> None:
    by = tenant(max_running=1)
    rig.new(by=by)
    attempt, parked = rig.attempt(), rig.new(by=by)
    rig.redis.delete(key("job", attempt.job))  # its end will never be
    rig.redis.zrem(single("leases"), attempt.job)
    rig.reap()
    assert rig.line() == [parked]
    assert rig.claim().spec.id == parked


def drain(rig: Rig, seconds: float) -> None:
    """So much time passes for the buckets."""
    rig.redis.hincrby(key("rate", "t"), "at", -int(seconds * 1000))


def test_a_rate_of_requests_is_a_burst_and_then_so_many_a_minute(rig: Rig) -> None:
    by = tenant(requests_per_minute=3)
    left = [rig.submit(by=by).rates for _ in range(3)]
    assert left == [Rates(Rate(3, n), None) for n in (2, 1, 0)]
    before = rig.values()
    with pytest.raises(RateLimited, match="t is beyond its rate of requests") as refused:
        rig.submit(by=by, idem="k")
    assert refused.value.retry_after_s in (19, 20)
    assert refused.value.rates == Rates(Rate(3, 0), None)
    assert rig.values() == before
    assert not rig.submit().existing  # another tenant has its own
    drain(rig, 21)
    assert not rig.submit(by=by, idem="k").existing
    assert rig.submit(by=by, idem="k").existing  # what is answered from before costs nothing
    with pytest.raises(RateLimited):
        rig.submit(by=by)
    drain(rig, 600)
    assert rig.submit(by=by).rates == Rates(Rate(3, 2), None)  # never more than a minute's


def test_a_rate_of_tokens_counts_what_was_used(rig: Rig) -> None:
    by = tenant(tokens_per_minute=25)

    def left() -> int:
        """After one more request."""
        rates = rig.submit(by=by).rates
        assert rates is not None
        assert rates.tokens is not None
        return rates.tokens.left

    assert left() == 15  # two tokens of prompt and eight of answer
    rig.attempt().make(3, end="succeeded").send()  # it used five, so the next is expected to use five as well
    assert left() == pytest.approx(15, abs=1)
    assert [left() for _ in range(3)] == pytest.approx([10, 5, 0], abs=1)
    with pytest.raises(RateLimited, match="rate of tokens"):
        rig.submit(by=by)
    for _ in range(2):
        rig.wait(rig.store.cancel(rig.line()[0]))  # one that never ran used nothing
    assert left() == pytest.approx(5, abs=1)


def test_a_request_larger_than_a_minutes_tokens_needs_all_of_them_and_leaves_a_debt(rig: Rig) -> None:
    by = tenant(tokens_per_minute=5, requests_per_minute=600)
    assert rig.submit(by=by).rates == Rates(Rate(600, 599), Rate(5, 0))
    assert rig.redis.ttl(key("rate", "t")) > 80_000  # a debt is not forgiven with its key
    with pytest.raises(RateLimited) as refused:
        rig.submit(by=by)
    assert refused.value.rates == Rates(Rate(600, 599), Rate(5, 0))
    assert refused.value.retry_after_s in (119, 120)
    drain(rig, 121)
    assert not rig.submit(by=by).existing
    drain(rig, -3600)  # the clock went back
    with pytest.raises(RateLimited) as refused:
        rig.submit(by=by)
    assert refused.value.retry_after_s <= 120


def test_a_limit_that_was_none_so_far_begins_full(rig: Rig) -> None:
    for _ in range(9):
        rig.new(by=tenant(tokens_per_minute=9000))
    both = rig.submit(by=tenant(tokens_per_minute=9000, requests_per_minute=5)).rates
    assert both is not None
    assert both.requests == Rate(5, 4)


def test_nothing_of_all_this_stays_when_all_jobs_have_ended(rig: Rig) -> None:
    by = tenant(max_running=1, max_waiting=9, requests_per_minute=9, tokens_per_minute=900)
    for _ in range(3):
        rig.new(by=by, priority="batch")
    for _ in range(3):
        rig.attempt().make(end="succeeded").send()
    assert rig.endless() == set()
    assert waiting(rig) == {}
