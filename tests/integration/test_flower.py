"""Flower shows workers, queues and tasks live, changes nothing, and never sees a prompt or an answer."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from tests.integration.up_rig import MODELS, Up, wait_for

MARKER = f"marker-{secrets.token_hex(8)}"
#: Echoed by the scripted engine, so the marker stands in the answer too; slow enough to look at it while it runs.
PROMPT = f"[step_ms=100]{MARKER} " + "and so on " * 20


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One lane, so that a second ticket waits on the queue. Flower's API is opened for this test only."""
    models = MODELS.replace("max_num_seqs = 4", "max_num_seqs = 1")
    up = Up(tmp_path_factory.mktemp("flower"), models, flower=True, FLOWER_UNAUTHENTICATED_API="true")
    try:
        yield up.start()
    finally:
        up.stop()


@pytest.fixture(scope="module")
def flower(up: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{up.flower_port}", timeout=15) as client:

        def answers() -> bool:
            try:
                return bool(client.get("/api/workers", params={"refresh": "true"}).json())
            except (httpx.HTTPError, ValueError):
                return False

        wait_for(answers, "Flower and its worker")
        yield client


@pytest.fixture(scope="module")
def jobs(up: Up) -> list[str]:
    """One running job, whose answer holds the marker already, and one that waits."""
    running, waiting = up.submit(PROMPT), up.submit(PROMPT)
    wait_for(lambda: MARKER in up.get(f"/v1/jobs/{running}")["output_text"], "the marker in the answer")
    assert up.get(f"/v1/jobs/{waiting}")["state"] == "queued"
    return [running, waiting]


def test_it_shows_the_running_task_and_no_text(up: Up, flower: httpx.Client, jobs: list[str]) -> None:
    started = wait_for(lambda: flower.get("/api/tasks", params={"state": "STARTED"}).json(), "the task in Flower")
    ((task, shown),) = started.items()
    assert shown["name"] == "penstock.generate"
    assert up.get(f"/v1/jobs/{jobs[0]}")["state"] == "running"
    workers = flower.get("/api/workers").json()
    ((worker, details),) = workers.items()
    assert shown["worker"] == worker
    assert [queue["name"] for queue in details["active_queues"]] == ["penstock.fake"]
    pages = ("/api/tasks", "/api/workers?refresh=true", f"/api/task/info/{task}", "/api/queues/length", "/metrics")
    pages += ("/", "/tasks", f"/task/{task}", f"/worker/{worker}", "/broker")
    for page in pages:
        answer = flower.get(page)
        assert answer.status_code == 200, page
        assert MARKER not in answer.text, page


def test_no_key_of_celery_holds_text(up: Up, jobs: list[str]) -> None:
    with redis.Redis.from_url((up.data / "redis.url").read_text().strip()) as client:
        theirs = [name for name in client.scan_iter() if not name.startswith(b"penstock:")]
        values = {name: read(client, name) for name in theirs}
    assert len(values[b"penstock.fake"]) == 1, "the ticket of the waiting job"
    for name, rows in values.items():
        for row in rows:
            assert MARKER.encode() not in row + body_of(row), name
            assert not any(job.encode() in row + body_of(row) for job in jobs), name


def test_it_cannot_change_anything(up: Up, flower: httpx.Client) -> None:
    (worker,) = flower.get("/api/workers").json()
    assert flower.post(f"/api/worker/shutdown/{worker}").status_code == 403
    assert flower.post("/api/task/send-task/penstock.generate", json={"args": []}).status_code == 403


def test_no_log_holds_text(up: Up, jobs: list[str]) -> None:
    """After one job has succeeded and the other was cancelled."""
    assert MARKER in up.result(jobs[0])
    httpx.post(f"{up.url}/v1/jobs/{jobs[1]}/cancel", timeout=10).raise_for_status()
    wait_for(lambda: up.get(f"/v1/jobs/{jobs[1]}")["state"] == "cancelled", "the cancelled job")
    logs = list((up.data / "logs").iterdir())
    assert {"api.log", "flower.log", "redis.log", "worker-fake-0.log"} <= {log.name for log in logs}
    for log in (*logs, up.folder / "out"):
        assert MARKER not in log.read_text(), log


def read(client: redis.Redis, name: bytes) -> list[bytes]:
    """Every value of a key, of whatever type."""
    kind = client.type(name)
    found: Any
    if kind == b"list":
        found = client.lrange(name, 0, -1)
    elif kind == b"set":
        found = client.smembers(name)
    elif kind == b"zset":
        found = client.zrange(name, 0, -1)
    elif kind == b"hash":
        found = [part for pair in client.hgetall(name).items() for part in pair]
    else:
        assert kind == b"string", (name, kind)
        found = [client.get(name)]
    return list(found)


def body_of(row: bytes) -> bytes:
    """The decoded body of a broker message; nothing for other values."""
    try:
        return base64.b64decode(json.loads(row)["body"])
    except (ValueError, KeyError, TypeError):
        return b""
