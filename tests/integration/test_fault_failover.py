"""Sentinel makes a replica the primary: streams go on, and what asynchronous replication loses is said, never spliced."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.integration.failover_rig import pair
from tests.integration.line_rig import chat_body, whole_line
from tests.integration.worker_rig import expected
from tests.processes import wait_until

TEXT = "Count from 1 to 80. [step_ms=20]"


def test_a_failover_costs_a_pause(tmp_path: Path) -> None:
    with pair(tmp_path) as redis, whole_line(tmp_path, redis.front.url) as line:
        worker = line.rig.start()
        chats = [line.chat(TEXT).until(30) for _ in range(3)]
        jobs = [line.submit("Count from 1 to 20.") for _ in range(12)]
        time.sleep(0.2)  # replication is behind by milliseconds, and what it lacks is lost; see the next test
        redis.fail_over()
        line.rig.reconnect()
        for chat in chats:
            assert chat.until_over().check().over == "done"
            assert chat.text == expected(TEXT)
        for record in line.rig.until_over(*jobs, *(chat.job for chat in chats)):
            assert record.losses == 0
        assert [line.rig.text(job) for job in jobs] == [expected("Count from 1 to 20.")] * 12
        assert worker.process.poll() is None
        wait_until(lambda: line.chat("Count from 1 to 5.").until_over().text == "1, 2, 3, 4, 5", "new chats")


def test_a_hand_over_costs_a_pause(tmp_path: Path) -> None:
    """For a while the address still leads to the former primary, which refuses every write and hands out no ticket."""
    with pair(tmp_path) as redis, whole_line(tmp_path, redis.front.url) as line:
        worker = line.rig.start()
        chats = [line.chat(TEXT).until(30) for _ in range(3)]
        redis.hand_over(late_s=2)
        line.rig.reconnect()
        for chat in chats:
            assert chat.until_over().check().over == "done"
            assert chat.text == expected(TEXT)
        for record in line.rig.until_over(*(chat.job for chat in chats)):
            assert (record.losses, record.attempt) == (0, 1)
        wait_until(lambda: line.chat("Count from 1 to 5.").until_over().text == "1, 2, 3, 4, 5", "new chats")
        assert worker.process.poll() is None


def test_what_a_failover_can_lose_is_what_the_replica_lacked(tmp_path: Path) -> None:
    """Tokens are sent again by their worker; jobs accepted meanwhile are gone, and their readers are told."""
    with pair(tmp_path) as redis, whole_line(tmp_path, redis.front.url) as line:
        line.rig.start()
        chat = line.chat(TEXT).until(30)
        time.sleep(0.2)
        redis.link.hold()
        held = len(chat.text)
        accepted = [line.submit("[tokens=200] [step_ms=20]") for _ in range(3)]
        lost = line.events(accepted[0]).until(10)
        chat.until(held + 40)
        redis.fail_over()
        line.rig.reconnect()
        assert chat.until_over().check().over == "done"
        assert chat.text == expected(TEXT)
        assert lost.until_over().over == "job_lost"
        answers = [httpx.get(f"{line.url}/v1/jobs/{job}").status_code for job in accepted]
        assert answers == [404] * 3
        wait_until(lambda: line.rig.redis.zcard("penstock:leases") == 0, "lanes that let go of what is lost", 10)


def test_a_primary_that_must_have_a_replica_refuses_what_it_could_lose(tmp_path: Path) -> None:
    options = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
    with pair(tmp_path, *options) as redis, whole_line(tmp_path, redis.front.url) as line:
        worker = line.rig.start()
        chat = line.chat(TEXT).until(20)
        redis.link.hold()

        def submit() -> httpx.Response:
            return httpx.post(f"{line.url}/v1/jobs", json=chat_body("Count from 1 to 5."), timeout=20)

        wait_until(lambda: submit().status_code == 503, "a refusal", 6, 0.2)
        assert submit().json()["error"]["code"] == "store_unavailable"
        redis.link.let_go()
        assert chat.until_over().check().text == expected(TEXT)
        wait_until(lambda: submit().status_code == 202, "an accepted job", 6)
        assert worker.process.poll() is None
