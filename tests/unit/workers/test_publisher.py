"""The publisher against a real Redis: order, resending, and obeying."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tasks.events import Delta, End, EntryId
from tasks.keys import key
from tasks.ledger import Answer, JobLedger
from tests.unit.workers.parts import cancel, claimed, make_ledger
from workers.attempt import Attempt
from workers.engine.base import Event
from workers.publisher import UNSENT_LIMIT, Publisher


class Orders:
    """Stands where the engine loop stands and remembers what it was told."""

    def __init__(self) -> None:
        self.stopped: list[Attempt] = []
        self.removed: list[Attempt] = []
        self.woken = threading.Event()
        self.progress = threading.Event()

    def stop(self, attempt: Attempt) -> None:
        self.stopped.append(attempt)

    def remove(self, attempt: Attempt) -> None:
        self.removed.append(attempt)

    def wake(self) -> None:
        self.woken.set()


class Desk:
    """A publisher with its thread not yet running."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ledger: JobLedger = make_ledger(url)
        self.orders = Orders()
        self.publisher = Publisher(self.ledger, self.orders, self.orders.progress.set, lambda: 0)
        self.thread = threading.Thread(target=self.publisher.run)
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)

    def say(self, attempt: Attempt, count: int = 1, finish: str | None = None) -> None:
        choice = attempt.choices[0]
        for last in [False] * (count - 1) + [True]:
            end = finish if last else None
            attempt.take(choice, Event(attempt.rid(choice), len(choice.tokens), (1,), "x", finish=end))  # type: ignore[arg-type]

    def logged(self, attempt: Attempt) -> list[EntryId]:
        return [name for name, _ in self.ledger.read_all(attempt.job)]


@pytest.fixture
def desk(redis_url: str) -> Iterator[Desk]:
    desk = Desk(redis_url)
    yield desk
    desk.publisher.close()
    if desk.thread.ident is not None:
        desk.thread.join(5)
    desk.ledger.close()
    desk.redis.close()


def test_steps_that_gather_go_out_in_order_and_the_lane_is_told_of_the_end(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    desk.say(attempt, 150)
    desk.publisher.publish([attempt])
    desk.thread.start()
    assert desk.publisher.flush(5)
    desk.say(attempt, 1, "stop")
    desk.publisher.publish([attempt])
    assert attempt.wait(5)
    assert attempt.outcome == "succeeded"
    assert [name.seq for name in desk.logged(attempt)] == list(range(1, 154))
    entries = [entry for _, entry in desk.ledger.read_all(attempt.job)]
    assert [entry.index for entry in entries if isinstance(entry, Delta)] == list(range(151))
    assert entries[-1] == End("succeeded", 151, 0, "stop")


def test_a_log_that_lost_its_last_writes_gets_them_again(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    desk.thread.start()
    desk.say(attempt, 10)
    desk.publisher.publish([attempt])
    assert desk.publisher.flush(5)
    names = desk.logged(attempt)
    desk.redis.xdel(key("log", attempt.job), *(str(name) for name in names[6:]))
    desk.redis.execute_command("XSETID", key("log", attempt.job), str(names[5]))
    desk.redis.hset(key("job", attempt.job), mapping={"seq": names[5].seq, "tokens": 5})
    desk.say(attempt, 3)
    desk.publisher.publish([attempt])
    assert desk.publisher.flush(5)
    assert desk.logged(attempt) == [EntryId(attempt.fence, seq) for seq in range(1, 15)]
    assert desk.redis.hget(key("job", attempt.job), "tokens") == "13"


def test_a_renewal_that_finds_a_loss_starts_the_resending(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    desk.thread.start()
    desk.say(attempt, 4)
    desk.publisher.publish([attempt])
    assert desk.publisher.flush(5)
    desk.redis.xdel(key("log", attempt.job), f"{attempt.fence}-5")
    desk.redis.execute_command("XSETID", key("log", attempt.job), f"{attempt.fence}-4")
    desk.redis.hset(key("job", attempt.job), mapping={"seq": 4, "tokens": 3})
    (answer,) = desk.ledger.renew([(attempt.job, attempt.fence, attempt.outbox.logged)])
    assert answer == Answer("behind", 4)
    desk.publisher.obey(attempt, answer)
    assert desk.publisher.flush(5)
    assert [name.seq for name in desk.logged(attempt)] == [1, 2, 3, 4, 5]


def test_a_fenced_job_is_let_go_and_its_neighbour_is_not(desk: Desk) -> None:
    gone, stays = claimed(desk.url, desk.ledger, "hi"), claimed(desk.url, desk.ledger, "ho")
    desk.ledger.release(gone.job, gone.fence)
    before = desk.logged(gone)
    for attempt in (gone, stays):
        desk.say(attempt, 2)
    desk.publisher.publish([gone, stays])
    desk.thread.start()
    assert gone.wait(5)
    assert gone.outcome == "lost"
    assert desk.publisher.flush(5)
    assert desk.orders.removed == [gone]
    assert desk.logged(gone) == before
    assert len(desk.logged(stays)) == 3
    assert not stays.is_over


def test_a_cancel_stops_the_sequences_once(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    assert cancel(desk.url, attempt.job) == "requested"
    desk.thread.start()
    for _ in range(3):
        desk.say(attempt)
        desk.publisher.publish([attempt])
        assert desk.publisher.flush(5)
    assert desk.orders.stopped == [attempt]
    assert attempt.stopping == "cancel"


def test_too_much_unsent_holds_the_engine_until_there_is_room(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    desk.say(attempt, UNSENT_LIMIT - 1)
    desk.publisher.publish([attempt])
    assert not desk.publisher.full
    desk.say(attempt)
    desk.publisher.publish([attempt])
    assert desk.publisher.full
    desk.thread.start()
    assert desk.orders.woken.wait(5)
    assert desk.publisher.flush(5)
    assert not desk.publisher.full
    assert len(desk.logged(attempt)) == UNSENT_LIMIT + 1


def test_a_suspect_is_cleared_by_its_first_logged_token(desk: Desk) -> None:
    attempt = claimed(desk.url, desk.ledger, "hi")
    attempt.suspect = True
    desk.say(attempt)
    assert attempt.suspect
    desk.publisher.publish([attempt])
    desk.thread.start()
    assert desk.orders.progress.wait(5)
    assert not attempt.suspect


def test_a_record_that_redis_chokes_on_holds_up_nobody_else(desk: Desk) -> None:
    broken, fine = claimed(desk.url, desk.ledger, "hi"), claimed(desk.url, desk.ledger, "ho")
    desk.redis.delete(key("log", broken.job))
    desk.redis.set(key("log", broken.job), "no stream")
    for attempt in (broken, fine):
        desk.say(attempt, 3, "stop")
    desk.publisher.publish([broken, fine])
    desk.thread.start()
    assert fine.wait(5)
    assert fine.outcome == "succeeded"
    assert broken.wait(5)
    assert broken.outcome == "lost"
    assert desk.orders.removed == [broken]


def test_a_redis_that_refuses_everything_is_waited_for(desk: Desk) -> None:
    first, second = claimed(desk.url, desk.ledger, "hi"), claimed(desk.url, desk.ledger, "ho")
    desk.redis.config_set("maxmemory", 1)
    try:
        for attempt in (first, second):
            desk.say(attempt, 3, "stop")
        desk.publisher.publish([first, second])
        desk.thread.start()
        assert not desk.publisher.flush(1)
        assert not first.is_over
        assert not second.is_over
    finally:
        desk.redis.config_set("maxmemory", 0)
    assert first.wait(5)
    assert second.wait(5)
    assert (first.outcome, second.outcome) == ("succeeded", "succeeded")


def test_a_lone_job_whose_record_redis_chokes_on_frees_its_lane(desk: Desk) -> None:
    broken = claimed(desk.url, desk.ledger, "hi")
    desk.redis.delete(key("log", broken.job))
    desk.redis.set(key("log", broken.job), "no stream")
    desk.say(broken, 3, "stop")
    desk.publisher.publish([broken])
    desk.thread.start()
    assert broken.wait(5)
    assert broken.outcome == "lost"
    assert desk.publisher.flush(5)
