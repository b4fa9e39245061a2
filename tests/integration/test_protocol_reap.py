"""What a reaper does: leases, outages, poison, dead API processes, deadlines, tickets; and what stays in the end."""

from __future__ import annotations

from collections.abc import Callable

from tasks.keys import key, queue_of, single
from tasks.ledger import Answer
from tests.integration.protocol_rig import MODEL, Rig


def expiry(rig: Rig, index: str, member: str) -> float:
    """When a member of a sorted set of times is due, in milliseconds from now."""
    score = rig.redis.zscore(single(index), member)
    assert score is not None
    return float(score) - rig.now()


def test_a_silent_workers_job_goes_back_into_line_with_its_tokens(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(3).send()
    rig.pass_by("leases", attempt.job)
    assert rig.reap() == [1, 0, 0, 0, 0]
    record = rig.record(attempt.job)
    assert (record["state"], record["losses"], record["strikes"], record["tokens"]) == ("queued", "1", "0", "3")
    assert record["worker"] == ""
    assert rig.line() == [attempt.job]
    assert rig.tickets() >= 1
    assert rig.reap() == [0, 0, 0, 0, 0]


def test_race_13_with_no_worker_left_an_api_process_reaps(rig: Rig) -> None:
    attempt = rig.running()
    rig.pass_by("leases", attempt.job)
    assert rig.reap(api="a1")[0] == 1
    assert rig.line() == [attempt.job]


def test_race_10_after_an_outage_every_lease_gets_a_full_term(rig: Rig) -> None:
    attempt = rig.running(api="a1")
    rig.reap(api="a1")
    rig.pass_by("leases", attempt.job)
    rig.pass_by("apis", "a1")
    assert rig.reap(after_outage=True) == [0, 0, 0, 0, 0]
    assert rig.state(attempt.job) == "running"
    assert 4000 < expiry(rig, "leases", attempt.job) <= 5000
    assert 14_000 < expiry(rig, "apis", "a1") <= 15_000
    assert rig.reap() == [0, 0, 0, 0, 0]
    assert attempt.make().send() == "ok"


def test_race_15_an_outage_does_not_count_as_an_orphans_time(rig: Rig) -> None:
    """Nobody could come back for it meanwhile. It gets that time, and no more: outages may follow each other."""
    job = rig.new(api="a1")
    rig.wait(rig.store.detach(job, "a1", 30))
    rig.redis.zadd(single("orphans"), {job: rig.now() - 2000})
    assert rig.reap(after_outage=True) == [0, 0, 0, 0, 0]
    assert rig.reap()[2] == 0
    assert 6000 < expiry(rig, "orphans", job) <= 8100
    rig.redis.delete(single("tick"))
    rig.wait(rig.store.reap("a1"))
    assert expiry(rig, "orphans", job) <= 8100


def test_race_10_a_clock_that_went_back_counts_as_an_outage(rig: Rig) -> None:
    attempt = rig.running()
    rig.pass_by("leases", attempt.job)
    rig.redis.set(single("tick"), rig.now() + 60_000)
    assert rig.ledger.reap() == [0, 0, 0, 0, 0]
    assert rig.state(attempt.job) == "running"
    assert int(rig.redis.get(single("tick")) or 0) <= rig.now()


def after(rig: Rig, silent_ms: int) -> None:
    """A reaper comes by when nobody has for so long."""
    rig.redis.set(single("tick"), rig.now() - silent_ms)
    rig.ledger.reap()


def test_race_10_an_outage_is_two_thirds_of_a_short_lease(rigs: Callable[..., Rig]) -> None:
    """In which a worker that lives may have missed its renewals; of a long lease, three seconds as ever."""
    for lease_s, silent_ms in ((3.0, 2300), (60.0, 3300)):
        rig = rigs(lease_s=lease_s)
        attempt = rig.running()
        rig.pass_by("leases", attempt.job)
        after(rig, silent_ms)
        assert rig.state(attempt.job) == "running"
        assert attempt.make(end="succeeded").send() == "ok"


def test_a_reapers_own_pause_is_no_outage(rigs: Callable[..., Rig]) -> None:
    """However short the lease: one reaper, a little late every second, must not keep the dead alive."""
    rig = rigs(lease_s=0.3)
    attempt = rig.running()
    rig.pass_by("leases", attempt.job)
    after(rig, 1300)
    assert rig.state(attempt.job) == "queued"


def corrupt(rig: Rig, *jobs: str) -> None:
    """Each in a way of its own; the last one's record is no record at all."""
    ways = [("state", "asleep"), ("created", "yesterday"), ("model", ""), ("score", "high"), ("losses", "many")]
    for job, (field, value) in zip(jobs, ways, strict=False):
        rig.redis.hset(key("job", job), field, value)
    rig.redis.hdel(key("job", jobs[-2]), "spec")
    rig.redis.set(key("job", jobs[-1]), "no hash")


def test_a_corrupt_record_does_not_stop_the_reaping_of_others(rig: Rig) -> None:
    waiting = [rig.new(deadline_ms=60_000), rig.new(deadline_ms=60_000)]
    claimed = {rig.attempt().job for _ in waiting}
    assert claimed == set(waiting)
    attempts = [rig.running() for _ in range(7)]
    late = [rig.new(deadline_ms=60_000) for _ in range(2)]
    corrupt(rig, *(attempt.job for attempt in attempts))
    rig.redis.set(key("job", late[0]), "no hash")
    rig.redis.hset(key("job", late[1]), "deadline", 1)
    rig.pass_by("leases", *(attempt.job for attempt in attempts), waiting[0])
    rig.pass_by("deadlines", *late)
    rig.redis.zadd(single("orphans"), {attempts[-1].job: 1, waiting[1]: 1})
    assert rig.reap()[:4] == [8, 0, 2, 2]
    assert (rig.state(waiting[0]), rig.record(waiting[1])["cancel"], rig.state(late[1])) == ("queued", "1", "failed")
    assert rig.leased() == {waiting[1]}
    assert rig.redis.zcard(single("orphans")) == 0
    assert sorted(rig.redis.zrange(single("deadlines"), 0, -1)) == sorted(waiting)
    for job in [*(attempt.job for attempt in attempts), late[0]]:
        assert 0 < rig.redis.ttl(key("job", job)) <= 86400
    assert rig.reap()[:4] == [0, 0, 0, 0]


def test_a_corrupt_record_does_not_keep_a_dead_api_process(rig: Rig) -> None:
    jobs = [rig.new(api="a1") for _ in range(2)]
    rig.redis.set(key("job", jobs[0]), "no hash")
    rig.pass_by("apis", "a1")
    assert rig.reap()[1] == 1
    assert rig.redis.zrange(single("orphans"), 0, -1) == [jobs[1]]
    assert not rig.redis.exists(key("watched", "a1"), single("apis"))


def test_a_strike_is_a_loss_without_a_new_token_and_a_token_clears_them(rig: Rig) -> None:
    attempt = rig.running()
    rig.lose(attempt.job)
    attempt = rig.attempt()
    assert attempt.claim.strikes == 1
    assert rig.record(attempt.job)["alone"] == "1"
    attempt.make(0, choice_end=True).send()
    assert rig.number(attempt.job, "strikes") == 1  # no token, so still a suspect
    attempt.make(1).send()
    assert (rig.number(attempt.job, "strikes"), rig.record(attempt.job)["alone"]) == (0, "0")
    rig.lose(attempt.job)
    assert (rig.number(attempt.job, "strikes"), rig.number(attempt.job, "losses")) == (0, 2)


def test_deaths_while_alone_make_a_job_poison(rig: Rig) -> None:
    attempt = rig.running()
    for strikes in (1, 2):
        rig.lose(attempt.job)
        assert (rig.state(attempt.job), rig.number(attempt.job, "strikes")) == ("queued", strikes)
        attempt = rig.attempt()
    rig.lose(attempt.job)
    record = rig.record(attempt.job)
    assert (record["state"], record["code"], record["message"]) == ("failed", "poisoned", "its worker died 3 times")
    assert rig.log(attempt.job)[-1][1]["code"] == "poisoned"
    assert (rig.line(), rig.leased()) == ([], set())


def test_deaths_in_company_do_not_make_a_job_poison(rigs: Callable[..., Rig]) -> None:
    rig = rigs(max_strikes=1)
    attempt = rig.running()
    rig.lose(attempt.job)  # it did not run alone: perhaps its neighbour killed the worker
    assert rig.state(attempt.job) == "queued"
    rig.attempt()
    rig.lose(attempt.job)
    assert rig.code(attempt.job) == "poisoned"


def test_a_job_that_lost_too_many_workers_fails_whatever_it_emitted(rigs: Callable[..., Rig]) -> None:
    rig = rigs(max_losses=3)
    job = rig.new()
    for _ in range(3):
        rig.attempt().make(1).send()
        rig.lose(job)
    assert (rig.state(job), rig.code(job), rig.number(job, "strikes")) == ("failed", "poisoned", 0)
    assert rig.log(job)[-1][1]["tokens"] == 3


def test_drain_and_preemption_never_make_a_job_poison(rigs: Callable[..., Rig]) -> None:
    rig = rigs(max_strikes=1, max_losses=1)
    job = rig.new()
    for _ in range(5):
        assert rig.attempt().release()
    assert rig.state(job) == "queued"


def test_a_lease_without_a_job_is_dropped(rig: Rig) -> None:
    rig.redis.zadd(single("leases"), {"job_missing": 1, rig.new(): 1})
    assert rig.reap()[0] == 2
    assert rig.leased() == set()
    assert len(rig.line()) == 1


def test_a_deadline_ends_a_waiting_job_and_leaves_a_running_one_to_its_worker(rig: Rig) -> None:
    running, waiting = rig.running(deadline_ms=60_000), rig.new(deadline_ms=60_000, api="a1")
    ear = rig.listen("a1")
    for job in (running.job, waiting):
        rig.redis.hset(key("job", job), "deadline", 1)
    rig.pass_by("deadlines", running.job, waiting)
    assert rig.reap()[3] == 2
    assert (rig.state(waiting), rig.code(waiting)) == ("failed", "deadline_exceeded")
    assert [heard.entry["k"] for heard in ear.heard()] == ["end"]
    assert running.renew() == Answer("deadline")
    rig.lose(running.job)
    assert rig.code(running.job) == "deadline_exceeded"
    assert rig.redis.zcard(single("deadlines")) == 0


def test_race_14_lost_tickets_are_replaced_and_spare_ones_are_left(rig: Rig) -> None:
    for _ in range(3):
        rig.new()
    rig.redis.delete(queue_of(MODEL))
    assert rig.reap()[4] == 3
    assert rig.tickets() == 3
    rig.redis.lpush(queue_of(MODEL), "spare")
    assert rig.reap()[4] == 0
    assert rig.tickets() == 4


def test_a_very_short_queue_is_filled_in_bounded_portions(rig: Rig) -> None:
    for _ in range(70):
        rig.new()
    rig.redis.delete(queue_of(MODEL))
    assert [rig.reap()[4], rig.reap()[4], rig.reap()[4]] == [64, 6, 0]


def test_every_job_is_reaped_even_when_more_expire_than_one_call_takes(rig: Rig) -> None:
    attempts = [rig.running() for _ in range(70)]
    rig.pass_by("leases", *(attempt.job for attempt in attempts))
    assert [rig.reap()[0], rig.reap()[0], rig.reap()[0]] == [64, 6, 0]
    assert len(rig.line()) == 70


def test_workers_that_fell_silent_are_forgotten(rig: Rig) -> None:
    rig.redis.zadd(single("workers"), {"w1": 1, "w2": rig.now() + 5000})
    rig.reap()
    assert rig.redis.zrange(single("workers"), 0, -1) == ["w2"]
