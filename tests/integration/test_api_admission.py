"""A pool that cannot take more: full, without workers, draining, failed to load, without a chat template."""

from __future__ import annotations

import httpx
import openai
import pytest
import redis

from tasks.catalog import ModelEntry
from tests.api_server import MODEL, ScriptedWorker, chat_body, serve, settings_of
from tests.processes import wait_until

CHAT = "/v1/chat/completions"


def test_a_full_line(redis_url: str) -> None:
    worker = ScriptedWorker(redis_url).appear()
    with serve(settings_of(redis_url), ModelEntry(name=MODEL, engine="fake", max_waiting=1)) as url:
        body = chat_body()
        assert httpx.post(f"{url}/v1/jobs", json=body).status_code == 202
        for path in ("/v1/jobs", CHAT):
            reply = httpx.post(url + path, json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
            assert 1 <= int(reply.headers["retry-after"]) <= 120
            assert reply.json()["error"]["type"] == "rate_limit_error"
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as sdk,
            pytest.raises(openai.RateLimitError),
        ):
            sdk.chat.completions.create(model=MODEL, messages=chat_body()["messages"])
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            assert len(list(client.scan_iter("penstock:job:*"))) == 1
            assert not list(client.scan_iter("penstock:watch*"))
    worker.close()


def test_a_pool_without_workers(redis_url: str) -> None:
    worker = ScriptedWorker(redis_url)
    body = chat_body()
    with serve(settings_of(redis_url)) as url, httpx.Client(base_url=url) as http:

        def ask(path: str) -> tuple[int, str, str]:
            reply = http.post(path, json=body)
            error = reply.json()["error"] or {"code": "", "message": ""} if "error" in reply.json() else {}
            if reply.status_code == 503:
                assert 1 <= int(reply.headers["retry-after"]) <= 120
            return reply.status_code, error.get("code", ""), error.get("message", "")

        assert ask(CHAT)[:2] == ask("/v1/jobs")[:2] == (503, "no_worker")
        assert http.get("/readyz").status_code == 503
        worker.appear("loading")
        wait_until(lambda: "loading" in ask(CHAT)[2], "the card")
        assert ask(CHAT)[:2] == (503, "no_worker")
        worker.appear("failed", error="out of disk")
        wait_until(lambda: "out of disk" in ask(CHAT)[2], "the card")
        assert ask(CHAT) == (503, "model_failed_to_load", "the model fake failed to load: out of disk")
        assert ask("/v1/jobs")[1] == "model_failed_to_load"
        assert http.get(f"/v1/models/{MODEL}").json()["error"] == "out of disk"
        worker.appear("draining")
        wait_until(lambda: "draining" in ask(CHAT)[2], "the card")
        assert ask("/v1/jobs")[0] == 202
        worker.appear("ready")
        wait_until(lambda: http.get("/readyz").status_code == 200, "the card")
        assert http.get("/readyz").json() == {"status": "ready", "redis": "ok", "models": {MODEL: True}}
        assert http.get("/v1/workers").json()["data"][0]["lanes"] == 4
    worker.close()


def test_a_model_without_chat_template(redis_url: str) -> None:
    worker = ScriptedWorker(redis_url).appear(chat_template=None)
    with serve(settings_of(redis_url)) as url:
        reply = httpx.post(url + CHAT, json=chat_body())
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_chat_template")
        assert "/v1/completions" in reply.json()["error"]["message"]
    worker.close()
