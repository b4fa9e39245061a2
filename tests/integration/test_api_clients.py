"""Clients that leave, come back, or ask twice: what happens to their jobs."""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from api.sse import PIECE_BYTES
from tests.api_server import ApiLine, chat_body
from tests.processes import wait_until


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("claimed", [True, False])
def test_a_client_that_leaves_cancels(line: ApiLine, stream: bool, claimed: bool) -> None:
    job_id, attempt = leave_early(line, stream, claimed, {})
    if attempt:
        wait_until(lambda: attempt.renew() == "cancel", "the cancel of a job without client", 2)
    else:
        wait_until(lambda: line.http.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled", "the cancel", 2)


@pytest.mark.parametrize("why", [{"store": True}, {"headers": {"Idempotency-Key": "k"}}])
def test_a_kept_job_outlives_its_client(line: ApiLine, why: dict[str, Any]) -> None:
    _, attempt = leave_early(line, True, True, why)
    assert attempt
    wait_until(lambda: line.keys("penstock:watch:*") == [], "the detach")
    assert attempt.say("on") == "ok"
    attempt.end()


def leave_early(line: ApiLine, stream: bool, claimed: bool, extra: dict[str, Any]) -> tuple[str, Any]:
    headers = extra.pop("headers", {})
    attempt = None
    with httpx.Client(base_url=line.url, timeout=20) as http, ThreadPoolExecutor() as pool:

        def ask() -> None:
            with http.stream(
                "POST", "/v1/chat/completions", json=chat_body(stream=stream, **extra), headers=headers
            ) as r:
                for _ in r.iter_lines():
                    pass

        asking = pool.submit(ask)
        job = wait_until(lambda: line.keys("penstock:job:*"), "the job")[0].rpartition(":")[2]
        if claimed:
            attempt = line.worker.claim()
            attempt.say("a")
        for connection in list(http._transport._pool._connections):  # type: ignore[attr-defined]
            connection._connection._network_stream.get_extra_info("socket").shutdown(2)
        with pytest.raises(httpx.HTTPError):
            asking.result(10)
    return job, attempt


def test_an_idempotency_key_leads_to_the_same_job(line: ApiLine) -> None:
    headers = {"Idempotency-Key": '"one"'}
    with ThreadPoolExecutor() as pool:
        asking = [
            pool.submit(line.http.post, "/v1/chat/completions", json=chat_body(), headers=headers, timeout=20)
            for _ in range(3)
        ]
        attempt = line.worker.claim()
        wait_until(lambda: len(line.keys("penstock:job:*")) == 1, "one job")
        attempt.end(text="same")
        answers = [reply.result(10).json() for reply in asking]
    assert [answer["id"] for answer in answers] == [attempt.spec.id] * 3
    other = line.http.post("/v1/chat/completions", json=chat_body(max_tokens=1), headers={"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    again = line.http.post("/v1/chat/completions", json=chat_body(), headers={"Idempotency-Key": "one"})
    assert again.json()["choices"][0]["message"]["content"] == "same"


def test_a_stored_chat_is_kept_and_taken_up_again(line: ApiLine) -> None:
    with line.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, store=True)) as response:
        attempt = line.worker.claim()
        attempt.say("a", "b", "c")
        lines = response.iter_lines()
        ids = [next(x for x in lines if x.startswith("id: "))[4:] for _ in range(3)]
    job_id = attempt.spec.id
    url = f"/v1/chat/completions/{job_id}"
    wait_until(lambda: line.keys("penstock:watch:*") == [], "the detach")
    running = line.http.get(url)
    assert (running.status_code, running.json()["error"]["code"]) == (409, "job_not_finished")
    assert running.headers["x-should-retry"] == "false"
    attempt.end(text="d")
    for ask in ({"headers": {"Last-Event-ID": ids[2]}}, {"params": {"starting_after": ids[2]}}):
        params = {"stream": "true", **ask.pop("params", {})}
        rest = line.http.get(url, params=params, **ask)  # type: ignore[arg-type]
        assert '"role"' not in rest.text
        assert [x.partition('"content":"')[2][0] for x in rest.text.splitlines() if '"content"' in x] == ["c", "d"]
        assert rest.text.endswith("data: [DONE]\n\n")
    done = line.sdk.chat.completions.retrieve(job_id)
    assert done.choices[0].message.content == "abcd"


def test_a_long_log_is_sent_in_pieces(line: ApiLine) -> None:
    """A piece has a time limit, so a client that reads slowly, but reads, must be able to take one in it."""
    job = line.http.post("/v1/jobs", json=chat_body()).json()["id"]
    attempt = line.worker.claim()
    for _ in range(3):
        attempt.say(*["x" * 1000] * 200)
    attempt.end()
    sizes, reply = [], b""
    with socket.create_connection(httpx.URL(line.url).netloc.decode().split(":"), 20) as client:  # type: ignore[arg-type]
        client.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        while data := client.recv(65536):
            reply += data
    body = reply.partition(b"\r\n\r\n")[2]
    while (head := re.match(rb"([0-9a-f]+)\r\n", body)) and int(head[1], 16):
        sizes.append(int(head[1], 16))
        body = body[head.end() + sizes[-1] + 2 :]
    assert sum(sizes) > 600_000
    assert max(sizes) <= PIECE_BYTES
