"""The one write per engine step: dense, safe to repeat, with the end in the same call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.errors import StoreDown
from tasks.keys import key
from tasks.ledger import Answer, Write
from tests.integration.protocol_rig import Rig


def test_a_step_appends_densely_and_counts_tokens(rig: Rig) -> None:
    attempt = rig.running()
    assert attempt.make(2).send() == "ok"
    assert attempt.make(1).send() == "ok"
    assert [name.seq for name, _ in rig.log(attempt.job)] == [1, 2, 3, 4]
    assert {name.fence for name, _ in rig.log(attempt.job)} == {attempt.fence}
    assert [entry["i"] for _, entry in rig.log(attempt.job)[1:]] == [0, 1, 2]
    assert (rig.number(attempt.job, "seq"), rig.number(attempt.job, "tokens")) == (4, 3)


def test_race_3_a_step_repeated_after_a_timeout_is_accepted_and_changes_nothing(rig: Rig) -> None:
    attempt = rig.running()
    write = attempt.make(3).write()
    assert attempt.ask(write) == Answer("ok")
    before = rig.values()
    assert attempt.ask(write) == Answer("ok")
    assert rig.values() == before
    attempt.make(2)  # and a retry that carries more: only the new entries are added
    assert attempt.ask(attempt.write(0)) == Answer("ok")
    assert [name.seq for name, _ in rig.log(attempt.job)] == [1, 2, 3, 4, 5, 6]
    assert rig.number(attempt.job, "tokens") == 5


def test_race_3_a_worker_ahead_of_the_log_is_told_where_to_resend_from(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(3)
    before = rig.values()
    assert attempt.ask(attempt.write(1)) == Answer("behind", 1)
    assert rig.ledger.renew([(attempt.job, attempt.fence, 4)])[0] == Answer("behind", 1)
    assert rig.values().keys() == before.keys()
    assert attempt.ask(attempt.write(0)) == Answer("ok")
    assert rig.number(attempt.job, "seq") == 4


def test_race_4_the_end_goes_in_the_same_call_as_the_last_token(rig: Rig) -> None:
    attempt = rig.running()
    write = attempt.make(1, end="succeeded").write()
    assert attempt.ask(write) == Answer("ok")
    assert rig.kinds(attempt.job) == ["started", "delta", "end"]
    assert rig.state(attempt.job) == "succeeded"
    assert rig.leased() == set()
    before = rig.values()
    assert attempt.ask(write) == Answer("ok")  # my own terminal entry is the last: the retry of a success is a success
    assert rig.values() == before
    other = replace(write, end="failed")
    assert attempt.ask(other) == Answer("fenced")
    assert attempt.renew() == Answer("lost")
    assert not attempt.release()


def test_race_1_a_zombie_does_not_recreate_an_expired_log(rig: Rig) -> None:
    attempt = rig.running()
    rig.redis.delete(key("log", attempt.job))
    attempt.make(1)
    assert attempt.send() == "fenced"
    assert not rig.redis.exists(key("log", attempt.job))
    assert rig.number(attempt.job, "seq") == 1
    rig.redis.delete(key("job", attempt.job))
    assert attempt.send() == "fenced"
    assert attempt.renew().verdict == "lost"
    assert not rig.redis.exists(key("log", attempt.job), key("job", attempt.job))


def test_race_2_several_entries_of_one_step_have_ids_of_their_own(rig: Rig) -> None:
    attempt = rig.running(n=2, prompts=((1,),))
    attempt.make(2, choice_end=True).make(1, end="succeeded")
    assert attempt.send() == "ok"
    ids = [name for name, _ in rig.log(attempt.job)]
    assert len(set(ids)) == len(ids) == 6
    assert rig.kinds(attempt.job) == ["started", "delta", "delta", "choice_end", "delta", "end"]  # race 19: one end


def test_one_step_serves_many_jobs_and_answers_each_in_order(rig: Rig) -> None:
    good, stale, ahead, asked = (rig.running() for _ in range(4))
    rig.lose(stale.job)
    rig.wait(rig.store.cancel(asked.job))
    writes = [good.make().write(), stale.make().write(), ahead.make(2).write(1), asked.make().write()]
    assert [answer.verdict for answer in rig.ledger.step(writes)] == ["ok", "fenced", "behind", "cancel"]
    assert [rig.number(a.job, "seq") for a in (good, stale, ahead, asked)] == [2, 1, 1, 2]
    assert rig.ledger.step([]) == []


def test_a_malformed_step_writes_nothing_for_anyone(rig: Rig) -> None:
    good, bad = rig.running(), rig.running()
    before = rig.values()
    for write in (
        replace(bad.make().write(), end="queued"),
        replace(bad.write(), end="finished"),
        Write(bad.job, bad.fence, 2, [], "succeeded"),
    ):
        with pytest.raises(StoreDown, match="malformed step"):
            rig.ledger.step([good.make().write(0), write])
    assert rig.values() == before


def test_an_end_whose_place_is_taken_is_refused(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(3).send()
    assert attempt.ask(replace(attempt.write(0), end="succeeded")) == Answer("fenced")
    assert rig.state(attempt.job) == "running"


def test_race_8_a_cancel_is_durable_and_seen_by_step_and_renew(rig: Rig) -> None:
    attempt = rig.running()
    assert rig.wait(rig.store.cancel(attempt.job)) == "requested"
    assert rig.wait(rig.store.cancel(attempt.job)) == "requested"
    assert attempt.make().send() == "cancel"
    assert attempt.renew() == Answer("cancel")
    assert attempt.make(0, end="cancelled").send() == "ok"
    assert rig.state(attempt.job) == "cancelled"
    assert rig.kinds(attempt.job) == ["started", "delta", "end"]


def test_race_21_a_live_log_is_never_trimmed(rig: Rig) -> None:
    attempt = rig.running()
    for _ in range(30):
        attempt.make(100).send()
    assert len(rig.log(attempt.job)) == len(rig.ledger.read_all(attempt.job)) == 3001
    assert len(rig.wait(rig.store.read_all(attempt.job))) == 3001
