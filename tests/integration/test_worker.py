"""One worker process as it is started in production: tickets in, logs out."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tasks.app import create_app
from tasks.jobs import JobState
from tasks.keys import key, queue_of
from tasks.settings import load_settings
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import start_worker, wait_until


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url)
    yield rig
    rig.close()


def test_a_job_goes_through_the_queue_and_its_text_is_whole(pool: WorkerRig) -> None:
    worker = pool.start()
    job = pool.submit("Count from 1 to 30.")
    pool.until_over(job)
    assert pool.text(job) == expected("Count from 1 to 30.")
    assert pool.end(job).finish == "stop"
    assert pool.end(job).choice == 0
    (card,) = pool.cards()
    assert (card.state, card.lanes, card.model, card.engine, card.pid) == ("ready", 8, "fake", "fake", worker.pid)
    profile = pool.wait(pool.store.profile("fake"))
    assert profile is not None
    assert profile != "same"
    assert profile.max_num_seqs == 8


def test_the_log_of_a_worker_holds_no_content(pool: WorkerRig) -> None:
    worker = pool.start({"PENSTOCK_LOG_LEVEL": "DEBUG"})
    job = pool.submit("marzipan elephants never whisper")
    bad = pool.submit("marzipan in trouble [fail_at=3]")
    pool.until_over(job, bad)
    assert job in worker.log
    assert "marzipan" not in worker.log
    assert "whisper" not in worker.log


def test_fifty_jobs_on_eight_lanes(pool: WorkerRig) -> None:
    pool.start()
    jobs = [pool.submit(f"Count from {start} to {start + 20}.") for start in range(50)]
    most = 0
    while not pool.succeeded(*jobs[-3:]):
        most = max(most, pool.redis.zcard("penstock:leases"))
    pool.until_over(*jobs)
    assert pool.succeeded(*jobs)
    assert most == 8
    for start, job in enumerate(jobs):
        assert pool.text(job) == expected(f"Count from {start} to {start + 20}.")
    wait_until(lambda: pool.redis.llen(queue_of("fake")) == 0, "an empty ticket queue")


def test_a_cancelled_job_frees_its_lane_at_once(pool: WorkerRig) -> None:
    pool.start()
    runs = [pool.submit("[tokens=3000] [step_ms=20]") for _ in range(8)]
    for job in runs:
        pool.until_tokens(job, 3)
    queued, waiting = pool.submit("Count from 1 to 5."), pool.submit("Count from 1 to 9.")
    assert pool.wait(pool.store.cancel(queued)) == "cancelled"
    pool.check(queued)
    assert pool.job(waiting).state is JobState.QUEUED
    began = time.monotonic()
    assert pool.wait(pool.store.cancel(runs[0])) == "requested"
    (cancelled,) = pool.until_over(runs[0], timeout_s=2)
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.code == "cancelled"
    wait_until(lambda: pool.job(waiting).state is not JobState.QUEUED, "the next job on the lane", 2)
    assert time.monotonic() - began < 1.5
    pool.until_over(waiting)
    for job in runs[1:]:
        pool.wait(pool.store.cancel(job))
    pool.until_over(*runs[1:])


def test_choices_share_one_job_one_lane_and_one_log(pool: WorkerRig) -> None:
    pool.start()
    job = pool.submit("Count from 1 to 9.", "Count from 1 to 25. [step_ms=2]", n=2)
    (record,) = pool.until_over(job)
    assert record.state is JobState.SUCCEEDED
    assert [pool.text(job, choice) for choice in range(4)] == 2 * [expected("Count from 1 to 9.")] + 2 * [
        expected("Count from 1 to 25.")
    ]
    assert set(pool.choice_ends(job)) | {pool.end(job).choice} == {0, 1, 2, 3}
    assert len(pool.choice_ends(job)) == 3
    random = pool.submit("[tokens=30]", n=3, temperature=1.0)
    pool.until_over(random)
    assert len({pool.text(random, choice) for choice in range(3)}) == 3


def test_jobs_with_many_choices_do_not_run_more_sequences_than_places(pool: WorkerRig) -> None:
    pool.start()
    jobs = [pool.submit("[tokens=40] [step_ms=10]", n=4) for _ in range(5)]
    most = 0
    while not pool.succeeded(jobs[-1]):
        most = max(most, pool.redis.zcard("penstock:leases"))
    pool.until_over(*jobs)
    assert most == 2  # the third waits in line, where another worker could take it


def test_what_the_engine_refuses_or_cannot_do_ends_the_job_with_its_code(pool: WorkerRig) -> None:
    pool.start()
    long = pool.submit("hello", max_tokens=100_000)
    (record,) = pool.until_over(long)
    assert (record.state, record.code) == (JobState.FAILED, "context_length_exceeded")
    neighbour = pool.submit("[tokens=200]")
    once, always = pool.submit("[tokens=30] [fail_once_at=10]"), pool.submit("[tokens=30] [fail_at=10]", n=2)
    full = pool.submit("[tokens=30] [oom_at=4]")
    pool.until_over(neighbour, once, always, full)
    assert pool.succeeded(neighbour, once)
    assert pool.text(once) == expected("[tokens=30]")
    assert pool.text(neighbour) == expected("[tokens=200]")
    assert (pool.job(always).code, pool.end(always).finish) == ("engine_error", "error")
    assert pool.job(full).code == "out_of_memory"


def test_a_deadline_ends_a_running_job(pool: WorkerRig) -> None:
    pool.start()
    job = pool.submit("[tokens=3000] [step_ms=20]")
    pool.until_tokens(job, 3)
    pool.redis.hset(key("job", job), "deadline", "1")
    (record,) = pool.until_over(job, timeout_s=3)
    assert (record.state, record.code) == (JobState.FAILED, "deadline_exceeded")


def test_lanes_grow_and_shrink_while_the_worker_runs(pool: WorkerRig) -> None:
    pool.start()
    celery: Any = Celery(broker=pool.url, set_as_current=False)  # type: ignore[no-untyped-call]
    (card,) = pool.cards()
    celery.control.pool_shrink(6, destination=[card.name], reply=True)
    jobs = [pool.submit("[tokens=60] [step_ms=20]") for _ in range(6)]
    wait_until(lambda: pool.redis.zcard("penstock:leases") == 2, "two running jobs")
    time.sleep(0.3)  # time in which a third one would have begun
    assert pool.redis.zcard("penstock:leases") == 2
    celery.control.pool_grow(3, destination=[card.name], reply=True)
    wait_until(lambda: pool.redis.zcard("penstock:leases") >= 4, "more running jobs", 3)
    pool.until_over(*jobs)
    celery.close()


def test_flowers_buttons_do_no_harm(pool: WorkerRig) -> None:
    pool.start()
    job = pool.submit("[tokens=100] [step_ms=10]")
    pool.until_tokens(job, 5)
    flower: Any = create_app(load_settings(redis_url=pool.url))
    (card,) = pool.cards()
    (active,) = flower.control.inspect([card.name]).active().values()
    assert [task["name"] for task in active] == ["penstock.generate"]
    assert (active[0]["args"], active[0]["kwargs"]) == ([], {})
    flower.control.revoke(active[0]["id"], terminate=True, destination=[card.name])
    flower.close()
    pool.until_over(job)
    assert pool.succeeded(job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_worker_leaves_within_seconds(pool: WorkerRig, number: signal.Signals) -> None:
    worker = pool.start()
    began = time.monotonic()
    worker.signal(number)
    code = worker.wait(5)
    assert "ready" not in [card.state for card in pool.cards()]
    assert code == 0 or number is signal.SIGQUIT
    assert time.monotonic() - began < 4


def test_a_wrong_setting_is_one_line_that_says_what_to_do(pool: WorkerRig) -> None:
    worker = start_worker(pool.folder, pool.url, pool.models, model="fakee")
    pool.workers.append(worker)
    assert worker.wait(20) == 1
    assert "PENSTOCK_MODEL is 'fakee'" in worker.log
    assert "has: fake" in worker.log
    assert "Traceback" not in worker.log


def test_a_model_that_does_not_load_leaves_a_card_that_says_why(pool: WorkerRig) -> None:
    (pool.folder / "empty").mkdir()
    models = pool.folder / "broken.toml"
    models.write_text('[[model]]\nname = "broken"\npath = "empty"\n')
    worker = start_worker(pool.folder, pool.url, models, model="broken")
    pool.workers.append(worker)
    assert worker.wait(60) == 3
    (card,) = pool.cards()
    assert card.state == "failed"
    assert card.error
