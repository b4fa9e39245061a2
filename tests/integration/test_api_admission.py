"""A pool that cannot take more: full, without workers, draining, failed to load, without a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
import redis

from tasks.catalog import ModelEntry
from tests.api_server import MODEL, ScriptedWorker, chat_body, serve, settings_of
from tests.processes import wait_until

CHAT = "/v1/chat/completions"
JOBS = "/v1/jobs"
PLAIN = "/v1/completions"


def test_a_full_line(redis_url: str) -> None:
    worker = ScriptedWorker(redis_url).appear()
    with serve(settings_of(redis_url), ModelEntry(name=MODEL, engine="fake", max_waiting=1)) as url:
        body = chat_body(priority="interactive")
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


@pytest.mark.parametrize(("path", "fields"), [(JOBS, {}), (CHAT, {"stream": True})])
def test_a_full_line_does_not_refuse_the_repeat_that_filled_it(
    redis_url: str, path: str, fields: dict[str, bool]
) -> None:
    worker = ScriptedWorker(redis_url).appear()
    body = chat_body(**fields)
    with narrow(redis_url) as http:
        with http.stream("POST", path, json=body, headers=keyed("k")) as lost:
            accepted = lost.status_code
            job_id = lost.headers["x-penstock-job-id"]
        await_full(http)
        new = http.post(path, json=body, headers=keyed("other"))
        assert (new.status_code, new.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(new.headers["retry-after"]) <= 120
        assert new.headers["x-should-retry"] == "true"
        other = http.post(path, json={**body, "seed": 1}, headers=keyed("k"))
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
        with http.stream("POST", path, json=body, headers=keyed("k")) as again:
            assert again.status_code == accepted
            assert (again.headers["x-penstock-job-id"], again.headers["x-penstock-queue-position"]) == (job_id, "1")
            attempt = worker.claim()
            attempt.end(text="hi")
            text = again.read().decode()
        assert attempt.spec.id == job_id
        assert "hi" in text or path == JOBS
    worker.close()


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_a_lost_answer_is_given_again_by_a_pool_that_takes_nothing(redis_url: str, path: str) -> None:
    worker = ScriptedWorker(redis_url).appear()
    body = chat_body() if path == CHAT else {"model": MODEL, "prompt": "hello"}

    def ask(key: str, **fields: int) -> tuple[int, str]:
        """The status, and the job's id or the error's code."""
        reply = http.post(path, json={**body, **fields}, headers=keyed(key))
        found = reply.json()
        return reply.status_code, found["error"]["code"] if "error" in found else found["id"]

    with narrow(redis_url) as http, ThreadPoolExecutor() as pool:
        asking = pool.submit(ask, "k")
        attempt = worker.claim()
        attempt.end(text="hi")
        answer = (200, attempt.spec.id)
        assert asking.result(10) == answer
        assert http.post(JOBS, json=chat_body(priority="interactive")).status_code == 202
        await_full(http)
        assert ask("new") == (429, "queue_full")
        assert ask("k") == answer
        worker.claim().end()  # from here on nothing but the missing worker refuses
        worker.appear("draining")
        wait_until(lambda: http.get("/readyz").status_code == 503, "the card")  # until then a new key may get in line
        for state in ("draining", "failed"):
            worker.appear(state, error="out of disk")
            code = "no_worker" if state == "draining" else "model_failed_to_load"
            wait_until(lambda code=code: ask("new") == (503, code), "the card")  # type: ignore[misc]
            assert ask("k") == answer
            assert ask("k", seed=1) == (422, "idempotency_conflict")
    worker.close()


@contextmanager
def narrow(redis_url: str) -> Iterator[httpx.Client]:
    """A client of an API whose line takes one job."""
    entry = ModelEntry(name=MODEL, engine="fake", max_waiting=1)
    with serve(settings_of(redis_url), entry) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield http


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def await_full(http: httpx.Client) -> None:
    """Until the API itself knows: before that it lets everybody through to Redis."""
    wait_until(lambda: 'num_requests_waiting{model_name="fake"} 1.0' in http.get("/metrics").text, "the full line")


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
