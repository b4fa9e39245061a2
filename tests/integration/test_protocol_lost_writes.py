"""Redis restarts without its last writes: fences, the worker that resends, the reader that was ahead."""

from __future__ import annotations

import pytest

from tasks.events import EntryId
from tasks.keys import key
from tests.integration.protocol_rig import MODEL, Rig


def test_race_5_a_fence_is_never_given_twice(rig: Rig) -> None:
    job = rig.new()
    given: set[int] = set()
    disk = rig.copy()
    for worker in ("w1", "w2", "w3"):
        claim = rig.claim(worker)
        assert claim.fence not in given
        given.add(claim.fence)
        assert claim.attempt == 1  # Redis forgot the attempts before
        rig.roll_back(disk)
    assert rig.line() == [job]


def test_race_5_of_two_owners_after_a_restart_only_one_can_write(rig: Rig) -> None:
    job = rig.new()
    disk = rig.copy()
    before = rig.attempt("w1")
    before.make(2).send()
    rig.roll_back(disk)
    after = rig.attempt("w2")
    assert before.make(1).send() == "fenced"
    assert before.renew().verdict == "lost"
    assert after.make(1).send() == "ok"
    assert {name.fence for name, _ in rig.log(job)} == {after.fence}


def test_race_3_a_worker_resends_what_the_log_lost(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(2).send()
    disk = rig.copy()
    attempt.make(2).send()
    full = rig.log(attempt.job)
    rig.roll_back(disk)
    assert len(rig.log(attempt.job)) == 3
    renewed = attempt.renew()  # also an idle worker learns of it
    assert (renewed.verdict, renewed.seq) == ("behind", 3)
    assert attempt.make(1).send() == "behind"
    assert attempt.sent == 2
    assert attempt.send() == "ok"
    assert rig.log(attempt.job)[:-1] == full
    assert rig.number(attempt.job, "tokens") == 5


def test_race_4_an_end_that_was_lost_is_written_again_by_its_worker_or_by_the_next(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(1).send()
    disk = rig.copy()
    write = attempt.make(1, end="succeeded").write()
    assert attempt.ask(write).verdict == "ok"
    full = rig.log(attempt.job)
    rig.roll_back(disk)
    assert rig.state(attempt.job) == "running"
    assert attempt.ask(write).verdict == "ok"
    assert rig.log(attempt.job) == full
    rig.roll_back(disk)
    rig.lose(attempt.job)
    second = rig.attempt("w2")
    assert second.index == 1
    second.make(1, end="succeeded").send()
    assert [entry["i"] for _, entry in rig.log(attempt.job) if entry["k"] == "delta"] == [0, 1]
    assert attempt.ask(write).verdict == "fenced"


def test_race_6_a_reader_ahead_of_the_log_can_tell_lost_history(rig: Rig) -> None:
    first = rig.running()
    first.make(1).send()
    disk = rig.copy()
    first.make(2).send()
    last, _ = rig.log(first.job)[-1]
    rig.roll_back(disk)
    attached = rig.wait(rig.store.attach(first.job, "a1"))
    assert attached is not None
    assert attached.last.seq < last.seq  # live and behind: wait, the worker may send it again
    assert first.make(0, choice_end=True).send() == "behind"
    assert first.send() == "ok"
    assert rig.wait(rig.store.read(first.job, last))[0][0] == last
    rig.roll_back(disk)
    rig.lose(first.job)
    rig.attempt("w2").make(3).send()
    attached = rig.wait(rig.store.attach(first.job, "a1"))
    assert attached is not None
    assert attached.last.seq >= last.seq  # somebody else wrote there: its own entry is gone for good
    assert all(name != last for name, _ in rig.wait(rig.store.read(first.job, last)))


def test_race_7_a_lost_job_has_no_record(rig: Rig) -> None:
    disk = rig.copy()
    attempt = rig.running(api="a1")
    rig.roll_back(disk)
    assert rig.wait(rig.store.get(attempt.job)) is None
    assert rig.wait(rig.store.attach(attempt.job, "a1")) is None
    assert attempt.make().send() == "fenced"
    assert not rig.redis.exists(key("log", attempt.job))


@pytest.mark.parametrize("ticket", ["kept", "lost"])
def test_a_claim_that_was_lost_leaves_the_job_in_line(rig: Rig, ticket: str) -> None:
    job = rig.new()
    disk = rig.copy()
    lost = rig.attempt("w1")
    rig.roll_back(disk)
    if ticket == "lost":
        rig.redis.delete(f"penstock.{MODEL}")
    rig.reap()
    assert rig.line() == [job]
    assert rig.tickets() == 1
    assert lost.renew().verdict == "lost"


def test_a_cancel_that_was_lost_can_be_asked_again(rig: Rig) -> None:
    job = rig.new()
    disk = rig.copy()
    rig.wait(rig.store.cancel(job))
    [(name, _)] = rig.log(job)
    rig.roll_back(disk)
    assert rig.wait(rig.store.cancel(job)) == "cancelled"
    [(other, _)] = rig.log(job)
    assert other.fence > name.fence
    assert other == EntryId(other.fence, 1)
