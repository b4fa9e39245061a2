"""Workers that are killed, drained, hung or fenced: the text goes on, exactly."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.events import Delta
from tasks.jobs import JobState
from tasks.keys import queue_of
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import wait_until


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url)
    yield rig
    rig.close()


SLOW = "[tokens=400] [step_ms=10]"


def test_after_a_sigkill_another_worker_finishes_the_text(pool: WorkerRig) -> None:
    first = pool.start()
    jobs = [pool.submit(SLOW) for _ in range(4)] + [pool.submit(SLOW, n=2, temperature=1.0)]
    for job in jobs:
        pool.until_tokens(job, 20)
    pool.start()
    first.signal(signal.SIGKILL)
    first.wait()
    pool.until_over(*jobs)
    assert pool.succeeded(*jobs)
    for job in jobs[:4]:
        assert pool.text(job) == expected(SLOW)
        record, attempts = pool.job(job), pool.attempts(job)
        assert (record.losses, record.strikes) == (len(attempts) - 1, 0)
        assert [started.attempt for started in attempts] == list(range(1, record.attempt + 1))
        assert record.attempt >= 2
        assert attempts[1].tokens >= 20
    again = pool.submit(SLOW, n=2, temperature=1.0)
    pool.until_over(again)
    assert [pool.text(jobs[4], c) for c in (0, 1)] == [pool.text(again, c) for c in (0, 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_drain_hands_jobs_over_without_loss_or_blame(pool: WorkerRig, number: signal.Signals) -> None:
    first = pool.start()
    jobs = [pool.submit(SLOW) for _ in range(8)]
    for job in jobs:
        pool.until_tokens(job, 10)
    pool.start()
    began = time.monotonic()
    first.signal(number)
    code = first.wait(5)
    assert time.monotonic() - began < 5
    assert code == 0 or number is signal.SIGQUIT
    assert "drained: 8 jobs given back" in first.log
    pool.until_over(*jobs)
    for job in jobs:
        assert pool.text(job) == expected(SLOW)
        assert (pool.job(job).losses, pool.job(job).strikes, pool.job(job).attempt) == (0, 0, 2)


def test_a_drain_leaves_a_ticket_for_every_job_that_waits(pool: WorkerRig) -> None:
    """Lanes without room hold tickets, which they drop: all must be replaced, and here nobody reaps afterwards."""
    worker = pool.start()
    jobs = [pool.submit(SLOW, n=8) for _ in range(5)]
    pool.until_tokens(jobs[0], 20)
    wait_until(lambda: pool.redis.llen(queue_of("fake")) == 0, "lanes that hold the tickets")
    worker.signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    assert [pool.job(job).state for job in jobs] == [JobState.QUEUED] * 5
    assert pool.redis.llen(queue_of("fake")) >= 5


def test_stop_strings_and_limits_hold_over_a_resume(pool: WorkerRig) -> None:
    text = "Count from 1 to 100. [step_ms=20]"
    whole = expected(text)
    first = pool.start()
    stopped = pool.submit(text, stop=("47, 48",))
    limited = pool.submit(text, max_tokens=120)
    for job in (stopped, limited):
        pool.until_tokens(job, 30)
    pool.start()
    first.signal(signal.SIGTERM)
    first.wait()
    pool.until_over(stopped, limited)
    assert pool.text(stopped) == whole[: whole.index("47, 48")]
    assert pool.end(stopped).finish == "stop"
    assert pool.end(limited).finish == "length"
    assert pool.end(limited).tokens == 120


def test_a_finished_choice_is_not_run_again(pool: WorkerRig) -> None:
    first = pool.start()
    short, long = "Count from 1 to 3. [step_ms=10]", "Count from 1 to 150. [step_ms=10]"
    job = pool.submit(short, long)
    wait_until(lambda: pool.choice_ends(job), "the end of the short choice")
    pool.until_tokens(job, 40)
    pool.start()
    first.signal(signal.SIGTERM)
    first.wait()
    pool.until_over(job)
    assert pool.text(job, 0) == expected(short)
    assert pool.text(job, 1) == expected(long)
    assert pool.choice_ends(job) == {0: "stop"}
    assert pool.end(job).choice == 1


def test_a_process_that_was_stopped_is_no_hung_engine(pool: WorkerRig) -> None:
    """Loading a large model again takes minutes: a machine that slept must not cost that."""
    worker = pool.start({"PENSTOCK_STEP_TIMEOUT_S": "1"})
    for step_ms in (2, 600):  # awake again between two steps, and in the middle of one
        job = pool.submit(f"[tokens=20] [step_ms={step_ms}]")
        pool.until_tokens(job, 1)
        worker.signal(signal.SIGSTOP)
        time.sleep(2.5)
        worker.signal(signal.SIGCONT)
        pool.until_over(job)
    assert worker.process.poll() is None, worker.log


def test_a_zombie_is_fenced_and_goes_on_serving(pool: WorkerRig) -> None:
    first = pool.start()
    job = pool.submit(SLOW)
    pool.until_tokens(job, 10)
    pool.start()
    first.signal(signal.SIGSTOP)
    wait_until(lambda: pool.job(job).attempt == 2, "a second attempt")
    pool.until_tokens(job, 100)
    first.signal(signal.SIGCONT)
    pool.until_over(job)
    assert pool.text(job) == expected(SLOW)
    wait_until(lambda: "over: lost" in first.log, "the zombie to notice")
    assert len({name.fence for name, entry in pool.log(job) if isinstance(entry, Delta)}) == 2
    more = [pool.submit("[tokens=50]") for _ in range(16)]
    pool.until_over(*more)


def test_a_poisoned_job_ends_and_its_neighbours_finish(pool: WorkerRig) -> None:
    pool.env["PENSTOCK_MAX_STRIKES"] = "2"
    neighbours = [pool.submit("[tokens=150] [step_ms=20]") for _ in range(3)]
    poison = pool.submit("[tokens=50] [die_at=12]")
    deaths = 0
    deadline = time.monotonic() + 60
    worker = pool.start()
    while not all(pool.job(job).state.terminal for job in [poison, *neighbours]):
        assert time.monotonic() < deadline
        if worker.process.poll() is not None:
            deaths += 1
            worker = pool.start()
        time.sleep(0.05)
    pool.until_over(poison, *neighbours)
    assert (pool.job(poison).state, pool.job(poison).code) == (JobState.FAILED, "poisoned")
    assert 3 <= deaths <= 5
    assert pool.succeeded(*neighbours)
    for job in neighbours:
        assert pool.text(job) == expected("[tokens=150]")


def test_a_hung_engine_loses_its_jobs_and_the_process_ends(pool: WorkerRig) -> None:
    first = pool.start({"PENSTOCK_STEP_TIMEOUT_S": "1"})
    innocent = pool.submit(SLOW)
    pool.until_tokens(innocent, 5)
    hanging = pool.submit("[tokens=50] [hang_at=6]")
    assert first.wait(10) == 5
    assert "the engine hangs" in first.log
    pool.wait(pool.store.cancel(hanging))
    pool.start()
    pool.until_over(innocent, hanging)
    assert pool.text(innocent) == expected(SLOW)
    assert pool.job(hanging).state is JobState.CANCELLED


def test_a_dead_engine_gives_back_what_made_progress(tmp_path: Path, redis_url: str) -> None:
    rig = WorkerRig(tmp_path, redis_url, lanes=40)
    try:
        broken = [rig.submit("[tokens=9] [fail_at=2] [step_ms=20]") for _ in range(36)]
        innocent = rig.submit(SLOW)
        worker = rig.start()
        assert worker.wait(20) == 4  # each failed alone, and so many failures in a row end the engine
        assert "the engine is dead" in worker.log
        assert (rig.job(innocent).state, rig.job(innocent).losses) == (JobState.QUEUED, 0)
        jobs, deadline = [innocent, *broken], time.monotonic() + 60
        while not all(rig.job(job).state.terminal for job in jobs):
            assert time.monotonic() < deadline
            if worker.process.poll() is not None:
                worker = rig.start()
            time.sleep(0.1)
        rig.until_over(*jobs)
        assert rig.text(innocent) == expected(SLOW)
        assert {rig.job(job).code for job in broken} == {"engine_error"}
        assert len(rig.workers) <= 4
    finally:
        rig.close()
