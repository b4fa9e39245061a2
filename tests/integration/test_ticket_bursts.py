"""Many tickets at once: taken together, never more than there are free lanes, and Flower hears of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.app import create_app
from tasks.connections import connect
from tasks.generate import ticket_template
from tasks.jobs import JobState
from tasks.keys import queue_of
from tasks.settings import Settings, load_settings
from tasks.transport import TicketChannel
from tests.integration.worker_rig import WorkerRig
from tests.processes import wait_until

QUEUE = queue_of("fake")
LONG = "[tokens=3000] [step_ms=20]"


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url, lanes=32)
    yield rig
    rig.close()


def calls(pool: WorkerRig, command: str) -> int:
    """How often Redis ran it so far."""
    return int(pool.redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_a_burst_onto_idle_lanes_takes_few_round_trips(pool: WorkerRig) -> None:
    for _ in range(32):
        pool.submit(LONG)
    before = calls(pool, "brpop")
    pool.start()
    wait_until(lambda: pool.redis.zcard("penstock:leases") == 32, "32 running jobs")
    assert calls(pool, "brpop") - before == 4
    assert pool.redis.llen(QUEUE) == 0


def test_a_worker_leaves_the_tickets_that_it_cannot_serve(pool: WorkerRig) -> None:
    for _ in range(40):
        pool.submit(LONG)
    pool.start()
    wait_until(lambda: pool.redis.zcard("penstock:leases") == 32, "32 running jobs")
    time.sleep(0.3)  # time in which it would have taken one more
    assert pool.redis.llen(QUEUE) == 8
    pool.start()
    wait_until(lambda: pool.redis.zcard("penstock:leases") == 40, "all jobs running, without a reaper's tickets")


def test_a_first_attempt_reads_no_log(pool: WorkerRig) -> None:
    pool.start()
    before = calls(pool, "xrange")
    job = pool.submit("Count from 1 to 5.")
    wait_until(lambda: pool.job(job).state is JobState.SUCCEEDED, "the job")
    assert calls(pool, "xrange") == before
    pool.check(job)


def cut(pool: WorkerRig) -> None:
    """Every connection of Celery's breaks, and is there again."""

    def of_celery() -> dict[str, str]:
        return {
            client["id"]: client["cmd"] for client in pool.redis.client_list() if client["name"] == "penstock-celery"
        }

    wait_until(lambda: "brpop" in of_celery().values(), "a worker that waits for tickets")
    old = of_celery()
    for client in old:
        pool.redis.client_kill_filter(_id=client)
    wait_until(lambda: "brpop" in {k: v for k, v in of_celery().items() if k not in old}.values(), "it again")


@pytest.mark.parametrize("broken", [False, True], ids=["", "after a break"])
def test_flower_hears_of_every_ticket(pool: WorkerRig, broken: bool) -> None:
    """Events are gathered before they are published, and none is lost."""
    pool.start()
    if broken:
        cut(pool)
    app: Any = create_app(load_settings(redis_url=pool.url))
    heard: Counter[str] = Counter()
    tickets: set[str] = set()

    def hear(event: dict[str, Any]) -> None:
        heard[event["type"]] += 1
        tickets.add(event["uuid"])
        receiver.should_stop = heard["task-succeeded"] == 20

    with app.connection() as broker:
        kinds = ("task-received", "task-started", "task-succeeded")
        receiver = app.events.Receiver(broker, handlers=dict.fromkeys(kinds, hear))
        listening = receiver.itercapture(limit=None, timeout=20, wakeup=False)
        next(listening)  # the worker's heartbeat was heard
        jobs = [pool.submit("Count from 1 to 5.") for _ in range(20)]
        for _ in listening:
            pass
    pool.until_over(*jobs)
    assert heard == dict.fromkeys(kinds, 20)
    assert len(tickets) == 20
    app.close()


class Shrinking:
    """Lanes of which some are taken away while a pop is under way."""

    def __init__(self, *free: int) -> None:
        self._free = iter(free)

    def free(self) -> int:
        """As many as it was told, one number a question."""
        return next(self._free)


def test_tickets_that_no_lane_is_left_for_go_back_in_order(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TicketChannel, "lanes", Shrinking(8, 2))
    tickets = [ticket_template().replace("@TASK@", f"ticket-{n}").replace("@MODEL@", "fake") for n in range(12)]
    taken: list[Any] = []
    with create_app(Settings(redis_url=redis_url)).connection() as broker, connect(redis_url, "test") as client:
        client.lpush(QUEUE, *tickets)
        channel: Any = broker.default_channel
        channel.basic_consume(QUEUE, True, taken.append, "a consumer")
        broker.drain_events(timeout=5)
        assert [message.headers["id"] for message in taken] == ["ticket-0", "ticket-1"]
        assert client.lrange(QUEUE, 0, -1) == tickets[:1:-1]
