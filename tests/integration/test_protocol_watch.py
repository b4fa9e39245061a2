"""Who watches a job, what becomes of it when nobody does, and what stays in the end."""

from __future__ import annotations

import pytest

from tasks.keys import key, queue_of, single
from tests.integration.protocol_attempt import Attempt
from tests.integration.protocol_rig import MODEL, Rig


def expiry(rig: Rig, index: str, member: str) -> float:
    """When a member of a sorted set of times is due, in milliseconds from now."""
    score = rig.redis.zscore(single(index), member)
    assert score is not None
    return float(score) - rig.now()


def test_race_15_a_client_that_leaves_cancels_its_job_at_once(rig: Rig) -> None:
    attempt = rig.running(api="a1")
    rig.wait(rig.store.attach(attempt.job, "a2"))
    rig.wait(rig.store.detach(attempt.job, "a1", 0))
    assert attempt.make().send() == "ok"  # somebody else still reads
    rig.wait(rig.store.detach(attempt.job, "a2", 0))
    assert attempt.make().send() == "cancel"


def test_race_15_a_reader_that_comes_back_within_the_grace_saves_the_job(rig: Rig) -> None:
    attempt = rig.running(api="a1")
    rig.wait(rig.store.detach(attempt.job, "a1", 30))
    assert 29_000 < expiry(rig, "orphans", attempt.job) <= 30_000
    rig.wait(rig.store.attach(attempt.job, "a2"))
    assert rig.redis.zscore(single("orphans"), attempt.job) is None
    rig.wait(rig.store.detach(attempt.job, "a2", 30))
    rig.pass_by("orphans", attempt.job)
    assert rig.reap()[2] == 1
    assert attempt.make().send() == "cancel"
    assert rig.reap()[2] == 0


def test_stored_jobs_and_ended_jobs_are_never_orphans(rig: Rig) -> None:
    stored, ended = rig.running(api="a1", store=True), rig.running(api="a1")
    ended.make(end="succeeded").send()
    for attempt in (stored, ended):
        rig.wait(rig.store.detach(attempt.job, "a1", 0))
        rig.wait(rig.store.detach(attempt.job, "a1", 30))
    assert rig.redis.zcard(single("orphans")) == 0
    assert stored.make().send() == "ok"
    assert rig.state(ended.job) == "succeeded"


@pytest.mark.parametrize("reaped", [True, False], ids=["known", "died before its first reap"])
def test_race_15_a_dead_api_process_orphans_its_jobs_and_then_they_are_cancelled(rig: Rig, reaped: bool) -> None:
    waits, runs = rig.new(api="a1", idem="k"), rig.new(api="a1")
    shared, stored = rig.new(api="a1"), rig.new(api="a1", store=True)
    rig.wait(rig.store.attach(shared, "a2"))
    if reaped:
        rig.reap(api="a1")
    rig.redis.zrem(key("waiting", MODEL), waits)
    attempt = rig.attempt()
    assert attempt.job == runs
    rig.redis.zadd(key("waiting", MODEL), {waits: 1})
    rig.pass_by("apis", "a1")
    assert rig.reap()[1] == 1
    assert set(rig.redis.zrange(single("orphans"), 0, -1)) == {waits, runs}
    assert rig.redis.smembers(key("watch", shared)) == {"a2"}
    assert not rig.redis.exists(key("watched", "a1"))
    assert rig.redis.zscore(single("apis"), "a1") is None
    rig.pass_by("orphans", waits, runs)
    assert rig.reap()[2] == 2
    assert (rig.state(waits), attempt.make().send()) == ("cancelled", "cancel")
    assert not rig.redis.exists(key("idem", "default:k"))
    assert {rig.state(shared), rig.state(stored)} == {"queued"}


def test_a_dead_api_process_with_many_jobs_is_cleared_over_several_reaps(rig: Rig) -> None:
    for _ in range(70):
        rig.new(api="a1")
    rig.pass_by("apis", "a1")
    rig.reap()
    assert rig.redis.scard(key("watched", "a1")) == 6
    rig.reap()
    assert rig.redis.zcard(single("orphans")) == 70
    assert rig.redis.zscore(single("apis"), "a1") is None


def test_a_live_api_process_renews_itself_by_reaping(rig: Rig) -> None:
    rig.reap(api="a1")
    rig.pass_by("apis", "a1")
    assert rig.reap(api="a1")[1] == 0
    assert expiry(rig, "apis", "a1") > 14_000


def test_when_all_jobs_have_ended_every_key_left_has_a_ttl_or_is_documented(rig: Rig) -> None:
    ends: list[Attempt] = []
    for end in ("succeeded", "failed", "cancelled"):
        attempt = rig.running(api="a1", idem=end, listed=True, deadline_ms=60_000)
        attempt.make(2, end=end).send()
        ends.append(attempt)
    in_line = rig.new(api="a1", idem="line", deadline_ms=60_000)
    rig.wait(rig.store.cancel(in_line))
    for job in (*(attempt.job for attempt in ends), in_line):
        rig.wait(rig.store.attach(job, "a2"))
        rig.wait(rig.store.detach(job, "a1", 30))
        rig.wait(rig.store.detach(job, "a2", 30))
        assert 590 < rig.redis.ttl(key("log", job)) <= 600
        assert 4190 < rig.redis.ttl(key("job", job)) <= 4200
    rig.reap(api="a1")
    assert rig.endless() == set()
    rig.redis.delete(queue_of(MODEL))
    assert not [name for name in rig.values() if not name.startswith("penstock:")]


def test_a_reader_who_leaves_a_trace_on_an_ended_job_is_cleared_with_its_process(rig: Rig) -> None:
    job = rig.new(api="a1")
    rig.wait(rig.store.cancel(job))
    rig.wait(rig.store.attach(job, "a2"))
    assert rig.endless() == {key("watched", "a1"), key("watched", "a2")}
    rig.pass_by("apis", "a1", "a2")
    rig.reap()
    assert rig.endless() == set()
