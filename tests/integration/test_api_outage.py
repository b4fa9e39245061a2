"""A Redis that is down at start, goes away, and comes back: 503 meanwhile, and streams go on."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import redis

from tasks.redis_server import find_server
from tests.api_server import ScriptedWorker, chat_body, serve, settings_of
from tests.conftest import free_port
from tests.processes import wait_until

BODY = chat_body()


class OwnRedis:
    """A Redis that this test starts and stops."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(
            [find_server(), *options, "--save", "", "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        with redis.Redis.from_url(self.url) as client:
            wait_until(lambda: ping(client), "Redis")

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def hang(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)


def ping(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    made = OwnRedis(tmp_path)
    yield made
    made.stop()


def test_redis_that_is_down_at_start_and_comes(own_redis: OwnRedis) -> None:
    with serve(settings_of(own_redis.url)) as url, httpx.Client(base_url=url, timeout=20) as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503
        for path in ("/v1/chat/completions", "/v1/jobs"):
            refused = http.post(path, json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert refused.headers["retry-after"]
        assert http.get("/v1/workers").status_code == 503
        assert http.get("/v1/models").status_code == http.get("/metrics").status_code == 200
        own_redis.start()
        worker = ScriptedWorker(own_redis.url).appear()
        wait_until(lambda: http.get("/readyz").status_code == 200, "ready")
        wait_until(lambda: http.post("/v1/jobs", json=BODY).status_code == 202, "an accepted job")
        worker.close()


def test_a_stream_outlives_a_restart_of_redis(own_redis: OwnRedis) -> None:
    own_redis.start()
    worker = ScriptedWorker(own_redis.url).appear()
    with serve(settings_of(own_redis.url)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-") as sdk:
        stream = sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
        attempt = worker.claim()
        attempt.say("before ")
        texts = [next(stream).choices[0].delta.content for _ in range(2)]
        own_redis.stop()
        refused = httpx.post(f"{url}/v1/jobs", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        own_redis.start()
        again = ScriptedWorker(own_redis.url)
        attempt._ledger = again.ledger
        attempt.say("after")
        attempt.end()
        texts += [chunk.choices[0].delta.content for chunk in stream]
        assert "".join(text or "" for text in texts) == "before after"
        again.close()
    worker.close()


def test_a_stream_is_not_silent_while_redis_hangs(own_redis: OwnRedis) -> None:
    """Its calls take seconds to give up, and more when many wait for a connection."""
    own_redis.start()
    worker = ScriptedWorker(own_redis.url).appear()
    with (
        serve(settings_of(own_redis.url, keepalive_s=0.5)) as url,
        httpx.stream("POST", f"{url}/v1/chat/completions", json=chat_body(stream=True), timeout=20) as reply,
    ):
        attempt = worker.claim()
        attempt.say("before")
        lines = reply.iter_lines()
        assert any("before" in line for line in lines)
        own_redis.hang()
        silence, began = 0.0, time.monotonic()
        while time.monotonic() - began < 7.0:  # longer than a call may take
            before = time.monotonic()
            assert next(line for line in lines if line) == ": keep-alive"
            silence = max(silence, time.monotonic() - before)
        own_redis.go_on()
        assert silence < 2.0
        attempt.end(text="after")
        assert any("after" in line for line in lines)
        assert any(line == "data: [DONE]" for line in lines)
    worker.close()
