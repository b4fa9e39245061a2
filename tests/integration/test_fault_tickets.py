"""Tickets that are doubled, lost, late or of somebody else: none runs a job twice, and none keeps a job waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.app import create_app
from tasks.connections import connect
from tasks.generate import ticket_template
from tasks.keys import key, queue_of
from tasks.settings import Settings
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import wait_until

TEXT = "Count from 1 to 20. [step_ms=5]"
QUEUE = queue_of("fake")


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url, lanes=4)
    yield rig
    rig.close()


def ticket(model: str = "fake", task: str = "ticket-of-a-test") -> str:
    return ticket_template().replace("@TASK@", task).replace("@MODEL@", model)


def ended_once(pool: WorkerRig, *jobs: str) -> None:
    """Each with its text, in one attempt."""
    records = pool.until_over(*jobs)
    assert [pool.text(job) for job in jobs] == [expected(TEXT)] * len(jobs)
    assert [record.attempt for record in records] == [1] * len(jobs)
    wait_until(lambda: pool.redis.llen(QUEUE) == 0, "an empty queue")


def serves(pool: WorkerRig) -> None:
    """The worker is none the worse for it."""
    ended_once(pool, pool.submit(TEXT))
    assert pool.workers[0].process.poll() is None
    assert "Traceback" not in pool.workers[0].log


def test_doubled_tickets_find_nothing(pool: WorkerRig) -> None:
    jobs = [pool.submit(TEXT) for _ in range(6)]
    copies = pool.redis.lrange(QUEUE, 0, -1)
    for _ in range(5):
        pool.redis.lpush(QUEUE, *copies)  # with the same task ids
    pool.start()
    ended_once(pool, *jobs)
    serves(pool)


@pytest.mark.parametrize("when", ["before the worker starts", "while it works"])
def test_lost_tickets_are_replaced(pool: WorkerRig, when: str) -> None:
    if when == "while it works":
        pool.start()
    jobs = [pool.submit(TEXT) for _ in range(12)]
    pool.redis.delete(QUEUE)
    if when != "while it works":
        pool.start()
    ended_once(pool, *jobs)
    serves(pool)


def test_a_late_ticket_finds_nothing(pool: WorkerRig) -> None:
    job = pool.submit(TEXT)
    late = pool.redis.rpop(QUEUE)
    pool.start()
    ended_once(pool, job)  # by a ticket that a reaper pushed
    log = pool.log(job)
    pool.redis.lpush(QUEUE, str(late))
    serves(pool)
    assert pool.log(job) == log


def test_a_late_ticket_serves_another_job(pool: WorkerRig) -> None:
    """Tickets name no job: one is as good as another."""
    first = pool.submit(TEXT)
    late = pool.redis.rpop(QUEUE)
    assert pool.wait(pool.store.cancel(first)) == "cancelled"
    second = pool.submit(TEXT)
    pool.redis.delete(QUEUE)
    pool.redis.lpush(QUEUE, str(late))
    pool.start()
    ended_once(pool, second)


def test_a_ticket_of_another_model_serves_the_queues_own(pool: WorkerRig) -> None:
    """A worker claims for its own model only, whatever the ticket says; the other model's line is not touched."""
    pool.redis.zadd(key("waiting", "other"), {"job_of_another_model": 1})
    jobs = [pool.submit(TEXT) for _ in range(2)]
    pool.redis.delete(QUEUE)
    pool.redis.lpush(QUEUE, *(ticket("other", f"ticket-{number}") for number in range(4)))
    pool.start()
    ended_once(pool, *jobs)
    serves(pool)
    assert pool.redis.zrange(key("waiting", "other"), 0, -1) == ["job_of_another_model"]


def test_a_task_that_nobody_knows_is_dropped(pool: WorkerRig) -> None:
    pool.redis.lpush(QUEUE, ticket().replace("penstock.generate", "foreign.task"))
    job = pool.submit(TEXT)
    pool.start()
    ended_once(pool, job)
    ended_once(pool, pool.submit(TEXT))
    assert pool.workers[0].process.poll() is None


def test_what_is_no_message_at_all_costs_a_restart(pool: WorkerRig) -> None:
    """Celery's worker ends when it cannot read a message. Its jobs go back into line with their tokens, without blame."""
    text = "Count from 1 to 60. [step_ms=20]"
    first = pool.start()
    running = pool.submit(text)
    pool.until_tokens(running, 10)
    pool.redis.lpush(QUEUE, "no message")
    first.wait(10)
    assert "drained: 1 jobs given back" in first.log
    pool.start()
    (record,) = pool.until_over(running)
    assert pool.text(running) == expected(text)
    assert (record.attempt, record.losses) == (2, 0)
    ended_once(pool, pool.submit(TEXT))


def test_a_broker_connection_that_breaks_again_and_again_ends_no_worker(pool: WorkerRig) -> None:
    """Also not in the moment when it has just taken a ticket; and no ticket is noted anywhere else."""
    worker = pool.start()
    jobs = []
    for number in range(40):
        jobs += [pool.submit(TEXT) for _ in range(4)]
        time.sleep(number % 8 / 400)
        for client in pool.redis.client_list():
            if client["name"] == "penstock-celery":
                pool.redis.client_kill_filter(_id=client["id"])
    pool.until_over(*jobs)
    assert [pool.text(job) for job in jobs] == [expected(TEXT)] * len(jobs)
    assert worker.process.poll() is None, worker.log
    assert "Unrecoverable" not in worker.log
    assert not pool.redis.keys("unacked*")


def test_a_ticket_that_came_when_nobody_takes_any_more_goes_back(redis_url: str) -> None:
    """As in a drain, which stops to listen while a pop is under way."""
    with create_app(Settings(redis_url=redis_url)).connection() as broker, connect(redis_url, "test") as client:
        assert broker.default_channel
        broker.transport._deliver(json.loads(ticket()), QUEUE)
        broker.transport._deliver({"headers": {}, "properties": {}, "body": "an event"}, "celeryev.x")
        assert client.llen(QUEUE) == 1
        assert json.loads(client.lindex(QUEUE, 0)) == json.loads(ticket())
        assert not client.keys("unacked*")
