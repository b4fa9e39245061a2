"""Whose a request is, by its key, and what that tenant may: bands, shares, rates, its own list. With the unmodified SDK."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tasks.tenants import Tenant
from tests.api_server import HELLO, MODEL, ScriptedWorker, chat_body, serve, settings_of
from tests.processes import wait_until

JOBS = "/v1/jobs"


def tenant(name: str, **limits: Any) -> Tenant:
    return Tenant(name=name, key_sha256=[hashlib.sha256(f"key-{name}".encode()).hexdigest()], **limits)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


@contextmanager
def pool(redis_url: str, *tenants: Tenant) -> Iterator[tuple[httpx.Client, ScriptedWorker]]:
    """An API for these tenants, and a worker that does what the test says."""
    worker = ScriptedWorker(redis_url).appear()
    with serve(settings_of(redis_url), tenants=tenants) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield http, worker
    worker.close()


def submit(http: httpx.Client, who: str, **fields: Any) -> httpx.Response:
    return http.post(JOBS, json=chat_body(**fields), headers=bearer(who))


def test_a_key_says_whose_a_job_is_and_each_sees_its_own_list(redis_url: str) -> None:
    with pool(redis_url, tenant("a"), tenant("b")) as (http, worker):
        mine = submit(http, "a").json()["id"]
        submit(http, "b")
        submit(http, "nobody knows")
        assert [worker.claim().spec.tenant for _ in range(3)] == ["a", "b", "default"]
        listed = http.get(JOBS, headers=bearer("a")).json()["data"]
        assert [job["id"] for job in listed] == [mine]
        keyed = {"Idempotency-Key": "k"}
        ids = {http.post(JOBS, json=chat_body(), headers=bearer(who) | keyed).json()["id"] for who in ("a", "b")}
        assert len(ids) == 2


def test_a_flood_of_one_does_not_move_the_place_of_another(redis_url: str) -> None:
    with pool(redis_url, tenant("flood"), tenant("b")) as (http, _):
        for _ in range(30):
            submit(http, "flood")
        reply = submit(http, "b")
        assert reply.json()["queue"]["position"] == 2  # the first of the flood came before it
        assert reply.headers["x-penstock-queue-position"] == "2"


def test_a_band_that_a_tenant_may_not_have_is_refused_by_name(redis_url: str) -> None:
    with pool(redis_url, tenant("slow", max_priority="batch")) as (http, worker):
        reply = submit(http, "slow", priority="normal")
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "priority_not_allowed")
        assert reply.json()["error"]["param"] == "priority"
        assert submit(http, "slow").json()["priority"] == "batch"
        assert submit(http, "else", priority="interactive").status_code == 202
        assert [worker.claim().spec.priority for _ in range(2)] == ["interactive", "batch"]


def test_rates_are_told_in_openais_headers_and_refusals_say_when_to_come_back(redis_url: str) -> None:
    limited = tenant("a", requests_per_minute=2, tokens_per_minute=6000)
    with (
        pool(redis_url, limited) as (http, worker),
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="key-a", max_retries=0, timeout=20) as sdk,
    ):
        with sdk.chat.completions.with_streaming_response.create(
            model=MODEL, messages=HELLO, stream=True, max_tokens=20
        ) as stream:
            headers = stream.headers
            assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
            assert headers["x-ratelimit-reset-requests"] == "30s"
            assert headers["x-ratelimit-limit-tokens"] == "6000"
            assert 5900 < int(headers["x-ratelimit-remaining-tokens"]) < 6000
            assert headers["x-ratelimit-reset-tokens"].endswith("ms")
            worker.claim().end(text="hi")
            assert "hi" in stream.read().decode()
        assert submit(http, "a").headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.chat.completions.create(model=MODEL, messages=HELLO)
        assert refused.value.code == "rate_limit_exceeded"
        answer = refused.value.response.headers
        assert 1 <= int(answer["retry-after"]) <= 30
        assert (answer["x-should-retry"], answer["x-ratelimit-remaining-requests"]) == ("true", "0")
        assert "x-ratelimit-limit-requests" not in submit(http, "else").headers


def test_a_chat_has_a_priority_and_a_deadline_too(redis_url: str) -> None:
    with pool(redis_url) as (http, worker):
        submit(http, "x", priority="interactive")
        reply = http.post("/v1/chat/completions", json=chat_body(deadline_s=0.2))
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
        job = reply.headers["x-penstock-job-id"]
        first = worker.claim()
        assert first.spec.id != job
        assert http.get(f"{JOBS}/{job}").json()["attempts"] == 0  # it never touched a lane


def test_a_parked_job_knows_its_place_in_polls_and_comments(redis_url: str) -> None:
    with pool(redis_url, tenant("a", max_running=1)) as (http, worker):
        running = submit(http, "a")
        attempt = worker.claim()
        assert attempt.spec.id == running.json()["id"]
        with http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True), headers=bearer("a")) as parked:
            assert parked.headers["x-penstock-queue-position"] == "1"
            lines = parked.iter_lines()
            assert next(lines).startswith(": queued position=1")
            job = parked.headers["x-penstock-job-id"]
            assert http.get(f"{JOBS}/{job}").json()["queue"]["position"] == 1
            attempt.end(text="x")
            wait_until(lambda: worker.claim().end(text="mine"), "the parked job", 5)
            assert any("mine" in line for line in lines)
