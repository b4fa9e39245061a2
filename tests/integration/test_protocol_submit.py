"""Submitting, the line and its tickets, idempotency keys, cancelling in line."""

from __future__ import annotations

import json

import pytest

from tasks.errors import Conflict, QueueFull
from tasks.events import EntryId
from tasks.jobs import JobState
from tasks.keys import key, queue_of, single
from tests.integration.protocol_rig import MODEL, Rig, make_spec


def test_a_submitted_job_waits_with_a_place_and_a_ticket(rig: Rig) -> None:
    first, second = rig.submit(), rig.submit(listed=True, store=True, deadline_ms=5000)
    assert (first.existing, first.position, second.position) == (False, 1, 2)
    assert rig.line() == [first.id, second.id]
    assert rig.tickets() == 2
    found = rig.wait(rig.store.get(second.id))
    assert found is not None
    job, position = found
    assert (job.state, job.fence, job.seq, job.attempt, position) == (JobState.QUEUED, 0, 0, 0, 2)
    assert (job.started, job.finished, job.code, job.worker) == (None, None, None, None)
    assert rig.number(second.id, "deadline") == job.created + 5000
    assert rig.wait(rig.store.jobs("default", 10)) == [second.id]
    assert rig.log(second.id) == []


def test_jobs_are_listed_newest_first_page_by_page(rig: Rig) -> None:
    ids = [rig.new(listed=True) for _ in range(5)]
    for place, job in enumerate(ids):  # five jobs within one millisecond have no order of their own
        rig.redis.zadd(key("jobs", "default"), {job: place})
    assert rig.wait(rig.store.jobs("default", 2)) == [ids[4], ids[3]]
    assert rig.wait(rig.store.jobs("default", 2, after=ids[3])) == [ids[2], ids[1]]
    assert rig.wait(rig.store.jobs("other", 2)) == []


def test_the_line_is_ordered_by_band_and_then_by_arrival(rig: Rig) -> None:
    batch = rig.new(priority="batch")
    normal = [rig.new() for _ in range(2)]
    urgent = rig.submit(priority="interactive")
    assert urgent.position == 1
    assert rig.line() == [urgent.id, *normal, batch]
    assert [rig.claim().spec.id for _ in range(4)] == [urgent.id, *normal, batch]


def test_a_full_line_refuses_and_leaves_nothing_behind(rig: Rig) -> None:
    rig.new(limit=1)
    before = rig.values()
    with pytest.raises(QueueFull, match="1 jobs already wait"):
        rig.submit(limit=1, idem="k", api="a1", listed=True, deadline_ms=1000)
    assert rig.values() == before
    rig.attempt()
    assert rig.submit(limit=1).position == 1  # running jobs do not count


def test_an_id_is_never_used_twice(rig: Rig) -> None:
    job = rig.new()
    with pytest.raises(Conflict):
        rig.submit(id=job)
    assert rig.line() == [job]


def test_an_idempotency_key_leads_to_the_same_job_and_refuses_another_body(rig: Rig) -> None:
    first = rig.submit(idem="k", body="h1")
    before = rig.values()
    again = rig.submit(idem="k", body="h1", api="a1")
    assert (again.id, again.existing, again.position) == (first.id, True, None)
    with pytest.raises(Conflict):
        rig.submit(idem="k", body="h2")
    assert rig.values() == before
    assert not rig.submit(idem="k", body="h1", tenant="other").existing


def test_a_key_finds_its_job_even_when_the_line_is_full(rig: Rig) -> None:
    job = rig.new(idem="k", limit=1)
    assert rig.submit(idem="k", limit=1).id == job


def test_race_17_an_idempotency_key_lives_exactly_as_long_as_its_record(rig: Rig) -> None:
    job = rig.new(idem="k", store=True)
    name = key("idem", "default:k")
    assert rig.redis.ttl(name) == -1
    rig.wait(rig.store.cancel(job))
    assert rig.redis.ttl(name) == rig.redis.ttl(key("job", job)) > 600
    assert rig.submit(idem="k").id == job  # a job that the client itself cancelled stays the answer
    rig.redis.expire(name, 5)
    rig.redis.expire(key("job", job), 5)
    rig.wait(rig.store.attach(job, "a1"))  # a late reader prolongs both
    assert rig.redis.ttl(name) == rig.redis.ttl(key("job", job)) > 600
    rig.redis.delete(key("job", job))
    assert not rig.submit(idem="k", body="other").existing  # the record is gone: the key is free


def test_race_17_a_job_cancelled_because_nobody_listens_releases_its_key(rig: Rig) -> None:
    job = rig.new(idem="k", api="a1")
    rig.wait(rig.store.detach(job, "a1", 0))
    assert rig.state(job) == "cancelled"
    assert not rig.submit(idem="k").existing


def test_race_15_a_caller_that_comes_back_by_its_key_is_not_overtaken_by_the_reaper(rig: Rig) -> None:
    """Between the answer "existing" and its attach the orphan falls due."""
    job = rig.new(idem="k", api="a1")
    rig.wait(rig.store.detach(job, "a1", 30))
    rig.redis.zadd(single("orphans"), {job: rig.now() - 1000})  # due, and nobody came by yet
    assert rig.submit(idem="k", api="a2").id == job
    assert rig.reap()[2] == 0
    rig.wait(rig.store.attach(job, "a2"))
    assert rig.state(job) == "queued"
    assert rig.redis.zscore(single("orphans"), job) is None


def test_a_caller_that_came_back_by_its_key_and_died_leaves_an_orphan(rig: Rig) -> None:
    job = rig.new(idem="k", api="a1")
    rig.wait(rig.store.detach(job, "a1", 30))
    assert rig.submit(idem="k", api="a2").id == job
    rig.pass_by("orphans", job)
    assert rig.reap()[2] == 1
    assert rig.state(job) == "cancelled"


def test_a_released_key_is_not_touched_by_the_end_of_its_former_job(rig: Rig) -> None:
    attempt = rig.running(idem="k", api="a1")
    rig.wait(rig.store.detach(attempt.job, "a1", 0))
    other = rig.submit(idem="k")
    assert not other.existing
    attempt.make(end="cancelled").send()
    assert rig.redis.ttl(key("idem", "default:k")) == -1  # it belongs to a job that still waits
    assert rig.submit(idem="k").id == other.id


def test_race_14_submit_and_cancel_do_not_grow_the_ticket_list(rig: Rig) -> None:
    for _ in range(20):
        assert rig.wait(rig.store.cancel(rig.new())) == "cancelled"
    assert (rig.tickets(), rig.line()) == (1, [])


def test_race_14_every_ticket_has_a_fresh_task_id_even_after_lost_writes(rig: Rig) -> None:
    def ids() -> list[str]:
        return [json.loads(text)["headers"]["id"] for text in rig.redis.lrange(queue_of(MODEL), 0, -1)]

    empty = rig.copy()
    for _ in range(3):
        rig.new()
    before = ids()
    assert len(set(before)) == 3
    rig.roll_back(empty)
    rig.new()
    assert not set(ids()) & set(before)


def test_cancelling_in_line_is_immediate_and_terminal_states_absorb(rig: Rig) -> None:
    job = rig.new(api="a1")
    ear = rig.listen("a1")
    assert rig.wait(rig.store.cancel(job)) == "cancelled"
    assert rig.line() == []
    [(name, entry)] = rig.log(job)
    assert entry == {"k": "end", "state": "cancelled", "tokens": 0, "code": "cancelled"}
    assert name.seq == 1
    assert [(heard.job, heard.id, heard.entry) for heard in ear.heard()] == [(job, name, entry)]
    before = rig.values()
    assert rig.wait(rig.store.cancel(job)) == "already cancelled"
    assert rig.wait(rig.store.cancel("job_missing")) == "gone"
    assert rig.values() == before


def test_attach_tells_where_the_job_stands(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(3).send()
    attached = rig.wait(rig.store.attach(attempt.job, "a1"))
    assert attached is not None
    assert (attached.state, attached.last) == (JobState.RUNNING, EntryId(attempt.fence, 4))
    assert rig.wait(rig.store.attach("job_missing", "a1")) is None
    assert not rig.redis.exists(key("watch", "job_missing"))


def test_the_pace_of_a_line_is_measured_over_successes(rig: Rig) -> None:
    attempt = rig.running()
    rig.redis.hincrby(key("job", attempt.job), "claimed", -500)
    attempt.make(1, end="succeeded").send()
    line = rig.wait(rig.store.line(MODEL))
    assert (line.waiting, line.tickets) == (0, 1)
    assert line.token_ms is not None
    assert line.token_ms >= 500
    later = rig.running()
    rig.redis.hincrby(key("job", later.job), "claimed", -9000)
    rig.new()
    later.make(10, end="succeeded").send()
    busy = rig.wait(rig.store.line(MODEL)).token_ms
    assert busy is not None
    assert 900 <= busy < 1000  # how long a token takes while others wait is what those who wait are told


def test_a_spec_comes_back_as_it_was_submitted(rig: Rig) -> None:
    spec = make_spec(prompts=((1, 2), (3,)), n=2, metadata={"a": "ü"}, priority="batch")
    rig.wait(rig.store.submit(spec, limit=1))
    assert rig.claim().spec == spec
    assert rig.redis.zcard(single("leases")) == 1
