"""What the relay channels carry: what was accepted, whole, to those who watch, and nothing else."""

from __future__ import annotations

import json

from tasks.events import EntryId
from tasks.keys import key
from tests.integration.protocol_rig import Ear, Heard, Rig


def heard_of(ear: Ear, job: str) -> list[tuple[EntryId, dict[str, object]]]:
    """Ids and entries that came for one job."""
    return [(heard.id, heard.entry) for heard in ear.heard() if heard.job == job]


def test_what_is_logged_is_published_as_the_same_entries(rig: Rig) -> None:
    ear = rig.listen("a1")
    attempt = rig.running(api="a1")
    attempt.make(2).send()
    attempt.make(1, end="succeeded").send()
    assert heard_of(ear, attempt.job) == rig.log(attempt.job)
    assert rig.kinds(attempt.job) == ["started", "delta", "delta", "delta", "end"]


def test_entries_are_published_byte_for_byte(rig: Rig) -> None:
    attempt = rig.running(api="a1")
    pubsub = rig.redis.pubsub()  # type: ignore[no-untyped-call]
    pubsub.subscribe(key("relay", "a1"))
    pubsub.get_message(timeout=5)
    text = json.dumps({"k": "delta", "c": 0, "i": 0, "t": [1], "s": '"é\n\\'}, ensure_ascii=False)
    attempt.tail.append((text, 1))
    attempt.send()
    message = pubsub.get_message(timeout=5)
    pubsub.close()
    assert message["data"] == f'[["{attempt.job}",[["{attempt.fence}-2",{text}]]]]'
    assert rig.values()[key("log", attempt.job)][-1] == (f"{attempt.fence}-2", {"e": text})


def test_what_is_refused_or_repeated_is_not_published(rig: Rig) -> None:
    ear = rig.listen("a1")
    first = rig.running(api="a1")
    write = first.make(1).write()
    first.send()
    first.ask(write)
    first.make(2)
    first.ask(first.write(2))
    assert first.send() == "ok"
    assert heard_of(ear, first.job) == rig.log(first.job)
    rig.lose(first.job)
    first.make(1).send()
    assert ear.heard() == []
    second = rig.attempt()
    first.send()
    assert heard_of(ear, first.job) == rig.log(first.job)[-1:]
    second.make(1, end="succeeded")
    second.ask(second.write())
    second.ask(second.write())
    assert heard_of(ear, first.job) == rig.log(first.job)[-2:]


def test_what_the_log_lost_is_published_when_it_is_logged_again(rig: Rig) -> None:
    attempt = rig.running(api="a1")
    ear = rig.listen("a1")
    disk = rig.copy()
    attempt.make(2).send()
    sent = ear.heard()
    rig.roll_back(disk)
    attempt.make(1)
    assert attempt.send() == "behind"
    assert ear.heard() == []
    assert attempt.send() == "ok"
    again = ear.heard()
    assert again[:2] == sent
    assert [(heard.id, heard.entry) for heard in again] == rig.log(attempt.job)[1:]


def test_race_16_an_api_process_gets_only_the_jobs_that_it_watches(rig: Rig) -> None:
    ear = rig.listen("a1", "a2")
    one, two, both, none = (rig.running(api=api) for api in ("a1", "a2", "a1", ""))
    rig.wait(rig.store.attach(both.job, "a2"))
    ear.heard()
    rig.ledger.step([attempt.make().write() for attempt in (one, two, both, none)])
    heard = [(heard.api, heard.job) for heard in ear.heard()]
    assert sorted(heard) == sorted([("a1", one.job), ("a2", two.job), ("a1", both.job), ("a2", both.job)])
    rig.wait(rig.store.detach(both.job, "a1", 30))
    both.make(1, end="succeeded").send()
    assert {heard.api for heard in ear.heard()} == {"a2"}


def test_one_step_is_one_message_per_channel(rig: Rig) -> None:
    attempts = [rig.running(api="a1") for _ in range(5)]
    pubsub = rig.redis.pubsub()  # type: ignore[no-untyped-call]
    pubsub.subscribe(key("relay", "a1"))
    pubsub.get_message(timeout=5)
    rig.ledger.step([attempt.make(3).write() for attempt in attempts])
    rig.redis.publish(key("relay", "a1"), "last")
    message = pubsub.get_message(timeout=5)
    assert [len(entries) for _, entries in json.loads(message["data"])] == [3] * 5
    assert pubsub.get_message(timeout=5)["data"] == "last"
    pubsub.close()


def test_the_scripts_own_entries_are_published_too(rig: Rig) -> None:
    ear = rig.listen("a1")
    attempt = rig.running(api="a1", store=True)
    rig.lose(attempt.job)
    rig.attempt()
    rig.wait(rig.store.cancel(attempt.job))
    rig.lose(attempt.job)
    got: list[Heard] = ear.heard()
    assert [heard.entry["k"] for heard in got] == ["started", "started", "end"]
    assert [(heard.id, heard.entry) for heard in got] == rig.log(attempt.job)


def test_race_6_a_reader_finds_its_own_last_entry_by_an_inclusive_read(rig: Rig) -> None:
    attempt = rig.running()
    attempt.make(3).send()
    last = rig.log(attempt.job)[2][0]
    page = rig.wait(rig.store.read(attempt.job, last))
    assert [name for name, _ in page] == [last, EntryId(last.fence, last.seq + 1)]
    assert rig.wait(rig.store.read(attempt.job, EntryId(last.fence, 99))) == []
