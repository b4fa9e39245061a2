"""What can befall a worker beside a plain death: killed around its claim, out of memory, slow, alone, with a wrong clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.jobs import JobState
from tests.integration.line_rig import chat_body, whole_line
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import wait_until

TEXT = "Count from 1 to 40. [step_ms=10]"


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url, PENSTOCK_LEASE_S="1")
    yield rig
    rig.close()


def test_killed_between_ticket_and_claim(pool: WorkerRig) -> None:
    """The ticket is gone and nobody has the job: a reaper pushes another ticket, and the job was never touched."""
    job = pool.submit(TEXT)
    assert pool.launch("die-before-claim").wait() == -signal.SIGKILL
    assert (pool.job(job).state, pool.job(job).attempt) == (JobState.QUEUED, 0)
    pool.start()
    (record,) = pool.until_over(job)
    assert pool.text(job) == expected(TEXT)
    assert (record.attempt, record.losses, record.strikes) == (1, 0, 0)


def test_killed_before_the_answer_to_its_claim(pool: WorkerRig) -> None:
    """The job runs on paper only: its lease lapses."""
    job = pool.submit(TEXT)
    assert pool.launch("die-after-claim").wait() == -signal.SIGKILL
    assert (pool.job(job).state, pool.job(job).attempt) == (JobState.RUNNING, 1)
    pool.start()
    (record,) = pool.until_over(job)
    assert pool.text(job) == expected(TEXT)
    assert (record.attempt, record.losses, record.strikes) == (2, 1, 0)


def test_a_step_without_memory_is_tried_again(pool: WorkerRig) -> None:
    """What was generated stays, nobody is blamed, the worker lives."""
    worker = pool.start(fault="out-of-memory-once")
    texts = [TEXT, "[tokens=80] [step_ms=5]", "Count from 7 to 60."]
    jobs = [pool.submit(text) for text in texts]
    records = pool.until_over(*jobs)
    assert "a step failed, recovering: MemoryError: planted" in worker.log
    assert [pool.text(job) for job in jobs] == [expected(text) for text in texts]
    assert [(record.state, record.attempt) for record in records] == [(JobState.SUCCEEDED, 1)] * 3
    assert worker.process.poll() is None


def test_a_job_that_never_fits_into_memory_ends_and_its_neighbours_do_not_notice(pool: WorkerRig) -> None:
    worker = pool.start()
    neighbours = [pool.submit(TEXT) for _ in range(3)]
    for job in neighbours:
        pool.until_tokens(job, 20)
    huge = pool.submit("[tokens=30] [oom_at=4]")
    (failed, *rest) = pool.until_over(huge, *neighbours)
    assert (failed.state, failed.code, failed.tokens) == (JobState.FAILED, "out_of_memory", 4)
    assert [pool.text(job) for job in neighbours] == [expected(TEXT)] * 3
    assert [record.attempt for record in rest] == [1] * 3
    assert worker.process.poll() is None


def test_a_slow_but_healthy_step_keeps_its_lease(pool: WorkerRig) -> None:
    """Steps of two and a half leases, with reapers that look on."""
    slow = pool.start()
    job = pool.submit("[tokens=1] [step_ms=2500]")
    wait_until(lambda: pool.job(job).state is JobState.RUNNING, "a running job")
    pool.start()
    (record,) = pool.until_over(job)
    assert pool.text(job) == expected("[tokens=1]")
    assert (record.attempt, record.losses) == (1, 0)
    assert slow.process.poll() is None


def test_all_workers_gone_for_a_while(tmp_path: Path, redis_url: str) -> None:
    """Streams wait and are not silent, jobs are accepted, chats are refused; then everything goes on."""
    text = "Count from 1 to 80. [step_ms=20]"
    with whole_line(tmp_path, redis_url, lease_s=1) as line:
        workers = [line.rig.start(), line.rig.start()]
        chat = line.chat(text).until(30)
        job = line.submit(text)
        events = line.events(job).until(10)
        for worker in workers:
            worker.signal(signal.SIGKILL)
        wait_until(lambda: line.rig.job(chat.job).state is JobState.QUEUED, "the job in line, by the API's reaper", 5)
        wait_until(lambda: httpx.get(f"{line.url}/readyz").status_code == 503, "a pool without workers", 8)
        refused = httpx.post(f"{line.url}/v1/chat/completions", json=chat_body("hello"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
        assert int(refused.headers["retry-after"]) >= 1
        late, said = line.submit("Count from 1 to 5."), chat.comments
        wait_until(lambda: chat.comments > said + 1, "signs of life on a waiting stream", 5)
        line.rig.start()
        assert chat.until_over().check().over == "done"
        assert events.until_over().check().over == "succeeded"
        assert chat.text == events.text == expected(text)
        line.rig.until_over(chat.job, job, late)
        assert line.rig.text(late) == "1, 2, 3, 4, 5"


def test_workers_whose_clocks_are_an_hour_off(tmp_path: Path, redis_url: str) -> None:
    """Leases go by Redis' clock: nobody loses one early, and a dead worker's lapse in time."""
    text = "[tokens=300] [step_ms=20]"
    with whole_line(tmp_path, redis_url, lanes=4, lease_s=1) as line:
        ahead = line.rig.start(fault="clock-ahead")
        line.rig.start(fault="clock-behind")
        chats = [line.chat(text).until(30) for _ in range(6)]  # four lanes each: both work
        time.sleep(1.5)  # in which a lease by the wrong clock would lapse
        records = {chat: line.rig.job(chat.job) for chat in chats}
        assert [record.attempt for record in records.values()] == [1] * 6
        hit = [chat for chat, record in records.items() if f"-{ahead.pid}-" in str(record.worker)]
        assert 2 <= len(hit) <= 4
        ahead.signal(signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: any(line.rig.job(chat.job).attempt == 2 for chat in hit), "the next attempts", 5)
        assert time.monotonic() - killed < 4
        for chat in chats:
            assert chat.until_over().check().text == expected(text)
            assert line.rig.job(chat.job).losses == (1 if chat in hit else 0)
