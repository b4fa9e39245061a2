"""Connections that are cut or stall, and a Redis that dies: a pause, and no token lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from tests.integration.worker_rig import WorkerRig, expected
from tests.own_redis import OwnRedis
from tests.processes import start_worker, wait_until

TEXT = "[tokens=400] [step_ms=10]"


def test_a_redis_that_dies_and_comes_back_costs_a_pause(tmp_path: Path) -> None:
    server = OwnRedis(tmp_path / "redis").start()
    rig = WorkerRig(tmp_path, server.url, PENSTOCK_LEASE_S="5")
    try:
        worker = rig.start()
        fast, slow = "[tokens=900] [step_ms=2]", "Count from 1 to 200. [step_ms=2]"
        jobs = [rig.submit(fast), rig.submit(slow), rig.submit(fast)]
        for job in jobs:
            rig.until_tokens(job, 50)
        server.kill()
        time.sleep(4)  # an outage: long enough for the engine to fill its 256 entries, and for reaping to call it one
        server.start()
        rig.reconnect()
        rig.until_over(*jobs)
        for job, text in zip(jobs, (fast, slow, fast), strict=True):
            assert rig.text(job) == expected(text)
            assert (rig.job(job).losses, len(rig.attempts(job))) == (0, 1)
        after = rig.submit("Count from 1 to 5.")
        rig.until_over(after)
        assert worker.process.poll() is None
    finally:
        rig.close()
        server.kill()


def test_a_silent_redis_does_not_hold_a_drain(tmp_path: Path) -> None:
    server = OwnRedis(tmp_path / "redis").start()
    rig = WorkerRig(tmp_path, server.url, PENSTOCK_LEASE_S="5")
    try:
        worker = rig.start()
        job = rig.submit(TEXT)
        rig.until_tokens(job, 20)
        server.hang()
        worker.signal(signal.SIGTERM)
        assert worker.wait(8) == 0
        assert "the drain takes too long" in worker.log
        server.go_on()
        rig.start()
        rig.until_over(job)
        assert rig.text(job) == expected(TEXT)
    finally:
        server.go_on()
        rig.close()
        server.kill()


def test_a_worker_may_start_before_its_redis(tmp_path: Path) -> None:
    server = OwnRedis(tmp_path / "redis").start()
    rig = WorkerRig(tmp_path, server.url)
    try:
        server.kill()
        worker = start_worker(tmp_path, server.url, rig.models, rig.env)
        rig.workers.append(worker)
        wait_until(lambda: "Cannot connect" in worker.log, "a worker that misses its Redis")
        server.start()
        worker.wait_ready()
        wait_until(lambda: rig.wait(rig.store.profile("fake")), "the profile")
        job = rig.submit("Count from 1 to 5.")
        rig.until_over(job)
        assert rig.succeeded(job)
    finally:
        rig.close()
        server.kill()


def test_cut_and_stalled_connections_lose_nothing(tmp_path: Path, redis_url: str) -> None:
    rig = WorkerRig(tmp_path, redis_url, PENSTOCK_LEASE_S="5")
    try:
        worker = rig.start()
        jobs = [rig.submit(TEXT) for _ in range(6)]
        for job in jobs:
            rig.until_tokens(job, 20)
        clients: Any = rig.redis.client_list()
        for client in clients:
            if client["name"] in ("penstock-worker", "penstock-celery"):
                rig.redis.client_kill_filter(_id=client["id"])
        for job in jobs:
            rig.until_tokens(job, 100)
        rig.redis.client_pause(2000)
        rig.until_over(*jobs)
        for job in jobs:
            assert rig.text(job) == expected(TEXT)
            assert len(rig.attempts(job)) == 1
        after = rig.submit("Count from 1 to 5.")
        rig.until_over(after)
        assert worker.process.poll() is None
    finally:
        rig.close()
