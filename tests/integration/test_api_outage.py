"""A Redis that is down at start, goes away, and comes back: 503 meanwhile, and streams go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import redis

from tests.api_server import ScriptedWorker, chat_body, serve, settings_of
from tests.own_redis import OwnRedis
from tests.processes import wait_until

BODY = chat_body()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    made = OwnRedis(tmp_path / "redis")
    yield made
    made.kill()


def test_redis_that_is_down_at_start_and_comes(server: OwnRedis) -> None:
    with serve(settings_of(server.url)) as url, httpx.Client(base_url=url, timeout=20) as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503
        for path in ("/v1/chat/completions", "/v1/jobs"):
            refused = http.post(path, json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert refused.headers["retry-after"]
        assert http.get("/v1/workers").status_code == 503
        assert http.get("/v1/models").status_code == http.get("/metrics").status_code == 200
        server.start()
        worker = ScriptedWorker(server.url).appear()
        wait_until(lambda: http.get("/readyz").status_code == 200, "ready")
        wait_until(lambda: http.post("/v1/jobs", json=BODY).status_code == 202, "an accepted job")
        worker.close()


def test_a_stream_outlives_a_restart_of_redis(server: OwnRedis) -> None:
    server.start()
    worker = ScriptedWorker(server.url).appear()
    with serve(settings_of(server.url)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-") as sdk:
        stream = sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
        attempt = worker.claim()
        attempt.say("before ")
        texts = [next(stream).choices[0].delta.content for _ in range(2)]
        server.kill()
        refused = httpx.post(f"{url}/v1/jobs", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        server.start()
        again = ScriptedWorker(server.url)
        attempt._ledger = again.ledger
        attempt.say("after")
        attempt.end()
        texts += [chunk.choices[0].delta.content for chunk in stream]
        assert "".join(text or "" for text in texts) == "before after"
        again.close()
    worker.close()


def test_a_stream_is_not_silent_while_redis_hangs(server: OwnRedis) -> None:
    """Its calls take seconds to give up, and more when many wait for a connection."""
    server.start()
    worker = ScriptedWorker(server.url).appear()
    with (
        serve(settings_of(server.url, keepalive_s=0.5)) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=chat_body(stream=True), timeout=20) as reply,
    ):
        attempt = worker.claim()
        attempt.say("before")
        lines = reply.iter_lines()
        assert any("before" in line for line in lines)
        server.hang()
        silence, began = 0.0, time.monotonic()
        while time.monotonic() - began < 7.0:  # longer than a call may take
            before = time.monotonic()
            assert next(line for line in lines if line) == ": keep-alive"
            silence = max(silence, time.monotonic() - before)
        server.go_on()
        assert silence < 2.0
        attempt.end(text="after")
        assert any("after" in line for line in lines)
        assert any(line == "data: [DONE]" for line in lines)
    worker.close()


@pytest.mark.parametrize(("headers", "then"), [({"Idempotency-Key": "k"}, "queued"), ({}, "cancelled")])
def test_a_submit_whose_answer_was_lost(server: OwnRedis, headers: dict[str, str], then: str) -> None:
    """Redis took it, the client was told to try again: by its key it must find the job, and without one nobody can."""
    server.start()
    worker = ScriptedWorker(server.url).appear()
    with serve(settings_of(server.url)) as url, redis.Redis.from_url(server.url, decode_responses=True) as store:
        wait_until(lambda: httpx.post(f"{url}/v1/jobs", json=BODY).status_code == 202, "ready, with its scripts loaded")
        store.delete(*store.keys("penstock:job:*"))
        server.hang()
        refused = httpx.post(f"{url}/v1/chat/completions", json=BODY, headers=headers, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        server.go_on()
        job = wait_until(lambda: store.keys("penstock:job:*"), "the job")[0]
        wait_until(lambda: not store.keys("penstock:watch:*"), "the detach")
        assert store.hget(job, "state") == then
    worker.close()
