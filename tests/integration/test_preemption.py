"""A running job is put back into line with its tokens: a more urgent one takes its lane, and the text goes on, exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.jobs import JobState
from tasks.keys import key, single
from tests.integration.line_rig import whole_line
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import wait_until

LONG = "Count from 1 to 60. [step_ms=10]"
URGENT = "Count from 500 to 520. [step_ms=10]"
LEASE_S = 6


@pytest.fixture
def lane(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    """One worker with one lane, which renews its lease so rarely that it is not how the worker learns of anything."""
    rig = WorkerRig(tmp_path, redis_url, lanes=1, PENSTOCK_LEASE_S=str(LEASE_S))
    rig.start()
    yield rig
    rig.close()


def preempt(rig: WorkerRig, job: str) -> str:
    return rig.wait(rig.store.preempt(job))


def preempt_at(rig: WorkerRig, job: str, tokens: int) -> None:
    """In mid-sentence, as soon as it runs (again) and has so many tokens."""
    rig.until_tokens(job, tokens)
    wait_until(lambda: preempt(rig, job) == "preempted", "a running job", 3)


def until_preempted(rig: WorkerRig) -> tuple[str, str]:
    """A job in mid-sentence, and the more urgent one that now has its lane."""
    long = rig.submit(LONG)
    rig.until_tokens(long, 40)
    urgent = rig.submit(URGENT, priority="interactive")
    assert preempt(rig, long) == "preempted"
    wait_until(lambda: rig.job(urgent).state is JobState.RUNNING, "the urgent job on the lane", 3)
    return long, urgent


def test_a_more_urgent_job_takes_the_lane_and_the_text_goes_on(lane: WorkerRig) -> None:
    long = lane.submit(LONG)
    lane.until_tokens(long, 40)
    behind, urgent = lane.submit("Count from 1 to 9."), lane.submit(URGENT, priority="interactive")
    began = time.monotonic()
    assert preempt(lane, long) == "preempted"
    wait_until(lambda: lane.job(urgent).tokens, "the urgent job's first token", 3)
    assert time.monotonic() - began < LEASE_S / 3 - 0.5  # a step, not a renewal
    lane.until_over(urgent, long, behind)
    assert (lane.text(urgent), lane.text(long)) == (expected(URGENT), expected(LONG))
    first, second = lane.attempts(long)
    assert (first.tokens, second.attempt) == (0, 2)
    assert second.tokens >= 40
    record = lane.job(long)
    assert (record.losses, record.strikes, record.attempt) == (0, 0, 2)
    ends = [lane.job(job).finished or 0 for job in (urgent, long, behind)]
    assert ends == sorted(ends)  # back at its own place, before those who came later


def test_sampling_stop_strings_and_choices_hold_over_preemptions(lane: WorkerRig) -> None:
    """One after the other, since the engine has one place: what ran undisturbed before is what must come out."""

    def submit() -> list[str]:
        drawn = lane.submit("[tokens=150] [step_ms=10]", temperature=1.0, logprobs=2)
        return [drawn, lane.submit(LONG, stop=("47, 48",)), lane.submit(LONG, max_tokens=130)]

    undisturbed = submit()
    lane.until_over(*undisturbed)
    again = submit()
    for job in again:
        for tokens in (15, 45, 46, 90):
            preempt_at(lane, job, tokens)
        lane.until_over(job)
        assert lane.job(job).attempt == 5
    for one, other in zip(undisturbed, again, strict=True):
        assert lane.text(other) == lane.text(one)
        assert (lane.end(other).finish, lane.end(other).tokens) == (lane.end(one).finish, lane.end(one).tokens)


def test_without_a_more_urgent_job_it_goes_on_at_once(lane: WorkerRig) -> None:
    job = lane.submit(LONG)
    for number in range(1, 6):
        preempt_at(lane, job, 20 * number)
    lane.until_over(job)
    assert lane.text(job) == expected(LONG)
    assert lane.job(job).losses == 0


def test_a_cancel_while_preempted_ends_it_with_its_tokens(lane: WorkerRig) -> None:
    long, urgent = until_preempted(lane)
    assert lane.wait(lane.store.cancel(long)) == "cancelled"
    lane.until_over(long, urgent)
    assert lane.job(long).state is JobState.CANCELLED
    assert expected(LONG).startswith(lane.text(long))
    assert lane.end(long).tokens >= 40
    assert lane.text(urgent) == expected(URGENT)
    assert len(lane.attempts(long)) == 1


def test_a_deadline_while_preempted_ends_it_with_its_tokens(lane: WorkerRig) -> None:
    long, urgent = until_preempted(lane)
    lane.redis.hset(key("job", long), "deadline", 1)
    lane.redis.zadd(single("deadlines"), {long: 1})
    lane.until_over(long, timeout_s=5)
    assert (lane.job(long).state, lane.job(long).code) == (JobState.FAILED, "deadline_exceeded")
    assert lane.end(long).tokens >= 40
    assert preempt(lane, long) == "already failed"
    lane.until_over(urgent)
    assert lane.text(urgent) == expected(URGENT)


def test_a_cancel_that_its_worker_has_not_seen_ends_it_at_once(lane: WorkerRig) -> None:
    slow = lane.submit("[tokens=50] [step_ms=1500]")
    lane.until_tokens(slow, 1)
    assert lane.wait(lane.store.cancel(slow)) == "requested"
    assert preempt(lane, slow) == "ended cancelled"
    lane.check(slow)
    after = lane.submit("Count from 1 to 5.")
    lane.until_over(after)
    assert preempt(lane, after) == "already succeeded"


def test_a_lane_whose_step_is_long_is_free_at_the_next_renewal(lane: WorkerRig) -> None:
    slow = lane.submit("[tokens=50] [step_ms=4000]")
    wait_until(lambda: lane.job(slow).state is JobState.RUNNING, "a running job")
    assert preempt(lane, slow) == "preempted"
    urgent = lane.submit("Count from 1 to 5.", priority="interactive")
    wait_until(lambda: lane.job(urgent).state is JobState.RUNNING, "a free lane", LEASE_S / 3 + 1)
    lane.until_over(urgent)
    lane.wait(lane.store.cancel(slow))
    lane.until_over(slow)


def test_a_stream_goes_on_over_a_preemption(tmp_path: Path, redis_url: str) -> None:
    with whole_line(tmp_path, redis_url, lanes=1) as line:
        line.rig.start()
        chat = line.chat(LONG).until(60)
        urgent = line.rig.submit(URGENT, priority="interactive")
        assert preempt(line.rig, chat.job) == "preempted"
        line.rig.until_over(urgent)
        assert chat.until_over().check().over == "done"
        assert chat.text == expected(LONG)


def test_a_batch_job_yields_to_an_interactive_one_by_itself(lane: WorkerRig) -> None:
    long = lane.submit(LONG, priority="batch")
    lane.until_tokens(long, 40)
    began = time.monotonic()
    urgent = lane.submit(URGENT, priority="interactive")
    wait_until(lambda: lane.job(urgent).tokens, "the urgent job's first token", 3)
    assert time.monotonic() - began < LEASE_S / 3 - 0.5  # a step, not a renewal
    lane.until_over(urgent, long)
    assert (lane.text(urgent), lane.text(long)) == (expected(URGENT), expected(LONG))
    record = lane.job(long)
    assert (record.attempt, record.losses, record.strikes) == (2, 0, 0)
    assert lane.attempts(long)[1].tokens >= 40


def test_a_normal_job_keeps_its_lane(lane: WorkerRig) -> None:
    long = lane.submit(LONG)
    lane.until_tokens(long, 40)
    urgent = lane.submit(URGENT, priority="interactive")
    lane.until_over(long, urgent)
    assert lane.job(long).attempt == 1
