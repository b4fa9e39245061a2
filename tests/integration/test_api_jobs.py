"""/v1/jobs through a real port: submit, poll, watch and take up again, cancel, list."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.api_server import MODEL, ApiLine
from tests.processes import wait_until

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def events_of(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of a whole stream, comments left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def submit(line: ApiLine, **fields: Any) -> dict[str, Any]:
    reply = line.http.post("/v1/jobs", json={**CHAT, **fields})
    assert reply.status_code == 202
    job: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/v1/jobs/{job['id']}"
    assert reply.headers["x-penstock-job-id"] == job["id"]
    return job


def poll(line: ApiLine, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = line.http.get(f"/v1/jobs/{job_id}").json()
    return job


def test_a_job_from_line_to_result(line: ApiLine) -> None:
    ahead = submit(line, priority="interactive")
    job = submit(line, metadata={"a": "b"})
    assert job["id"].startswith("job_")
    assert (job["object"], job["state"], job["model"], job["attempts"]) == ("job", "queued", MODEL, 0)
    assert (job["queue"], job["result"], job["error"]) == ({"position": 2, "eta_s": None}, None, None)
    assert line.worker.claim().spec.id == ahead["id"]
    attempt = line.worker.claim()
    attempt.say("so ", "far")
    running = poll(line, job["id"])
    assert (running["state"], running["output_text"], running["queue"]) == ("running", "so far", None)
    assert running["usage"]["completion_tokens"] == 2
    assert running["started_at"] >= running["created_at"]
    attempt.end(text=".")
    done = poll(line, job["id"])
    assert (done["state"], done["output_text"], done["attempts"]) == ("succeeded", "so far.", 1)
    assert done["result"]["object"] == "chat.completion"
    assert done["result"]["choices"][0]["message"]["content"] == "so far."
    assert done["result"]["usage"] == done["usage"]
    assert done["finished_at"] >= done["started_at"]
    assert done["metadata"] == {"a": "b"}


def test_a_completion_job(line: ApiLine) -> None:
    job = line.http.post("/v1/jobs", json={"model": MODEL, "prompt": "x", "max_tokens": 3}).json()
    line.worker.claim().end("length", text="abc")
    result = poll(line, job["id"])["result"]
    assert (result["object"], result["choices"][0]["text"]) == ("text_completion", "abc")
    assert result["choices"][0]["finish_reason"] == "length"


def test_events_stream_and_resume(line: ApiLine) -> None:
    job = submit(line)
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(line.http.get, f"/v1/jobs/{job['id']}/events")
        wait_until(lambda: line.keys("penstock:watch:*"), "the watcher")
        attempt = line.worker.claim()
        attempt.say("a", "", "b")
        attempt.give_back()
        again = line.worker.claim()
        again.end(text="c")
        text = watching.result(10).text
    assert ": queued position=1" in text
    events = events_of(text)
    assert [name for _, name, _ in events] == ["started", "delta", "delta", "delta", "started", "delta", "end"]
    assert events[1][2] == {"choice": 0, "index": 0, "tokens": 1, "text": "a"}
    assert events[4][2] == {"attempt": 2, "tokens": 3}
    assert (events[-1][2]["state"], events[-1][2]["usage"]["completion_tokens"]) == ("succeeded", 4)
    for at in range(len(events) - 1):
        for ask in ({"headers": {"Last-Event-ID": events[at][0]}}, {"params": {"starting_after": events[at][0]}}):
            rest = line.http.get(f"/v1/jobs/{job['id']}/events", **ask)  # type: ignore[arg-type]
            assert events_of(rest.text) == events[at + 1 :]
    over = line.http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": events[-1][0]})
    assert over.status_code == 204


@pytest.mark.parametrize(
    ("event_id", "status", "code"),
    [
        ("x", 400, "invalid_event_id"),
        ("-1", 400, "invalid_event_id"),
        ("1-2-3", 400, "invalid_event_id"),
        ("01-2", 400, "invalid_event_id"),
        ("9223372036854775808-1", 400, "invalid_event_id"),
        ("", 400, "invalid_event_id"),
        ("0-0", 409, "unknown_event_id"),
        ("1-999", 409, "unknown_event_id"),
        ("9223372036854775807-1", 409, "unknown_event_id"),
    ],
)
def test_event_ids_that_are_none(line: ApiLine, event_id: str, status: int, code: str) -> None:
    job = submit(line)
    attempt = line.worker.claim()
    attempt.say("a")
    for _ in ("running", "ended"):
        reply = line.http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": event_id})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        asked = line.http.get(f"/v1/jobs/{job['id']}/events", params={"starting_after": event_id})
        assert (asked.status_code, asked.json()["error"]["param"]) == (status, "starting_after")
        attempt.end()


def test_cancel(line: ApiLine) -> None:
    queued, running, done = (submit(line)["id"] for _ in range(3))
    assert line.http.post(f"/v1/jobs/{queued}/cancel").json()["state"] == "cancelled"
    assert line.http.post(f"/v1/jobs/{queued}/cancel").status_code == 200
    attempt = line.worker.claim()
    assert attempt.spec.id == running
    assert line.http.post(f"/v1/jobs/{running}/cancel").json()["state"] == "running"
    assert attempt.say("a") == "cancel"
    attempt.fail("cancelled", "", "cancelled")
    assert poll(line, running)["error"] == {"code": "cancelled", "message": "the job was cancelled"}
    line.worker.claim().end(text="x")
    refused = line.http.post(f"/v1/jobs/{done}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_cancellable")


def test_lists_page_by_page(line: ApiLine) -> None:
    ids = [submit(line)["id"] for _ in range(5)]
    seen: list[str] = []
    page = line.http.get("/v1/jobs", params={"limit": 2}).json()
    while True:
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        page = line.http.get("/v1/jobs", params={"limit": 2, "after": page["last_id"]}).json()
    assert sorted(seen) == sorted(ids)
    assert line.http.get("/v1/jobs", params={"after": "job_"}).status_code == 400


def test_a_list_goes_on_past_jobs_that_are_not_kept(line: ApiLine) -> None:
    ids = [submit(line)["id"] for _ in range(3)]
    listed = [row["id"] for row in line.http.get("/v1/jobs").json()["data"]]
    with redis.Redis.from_url(line.redis_url) as client:
        client.delete(f"penstock:job:{listed[0]}")
    page = line.http.get("/v1/jobs", params={"limit": 1}).json()
    assert (page["data"], page["last_id"], page["has_more"]) == ([], listed[0], True)
    page = line.http.get("/v1/jobs", params={"limit": 1, "after": page["last_id"]}).json()
    assert page["data"][0]["id"] == listed[1]
    assert len(ids) == 3


def test_an_accepted_job_is_answered_without_another_look(line: ApiLine) -> None:
    """A Redis that goes away after the submit must not turn an accepted job into a refusal, which clients repeat."""
    with redis.Redis.from_url(line.redis_url) as client:
        client.config_resetstat()
        assert submit(line)["queue"]["position"] == 1
        calls = client.info("commandstats")
    assert "cmdstat_hgetall" not in calls


def test_an_internal_error_names_its_request(line: ApiLine) -> None:
    job = submit(line)
    with redis.Redis.from_url(line.redis_url) as client:
        client.hset(f"penstock:job:{job['id']}", "spec", "{}")
    broken = line.http.get(f"/v1/jobs/{job['id']}", headers={"x-request-id": "mine"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (500, "internal_error")
    assert broken.headers["x-request-id"] == "mine"


def test_any_id_works(line: ApiLine) -> None:
    answering = line.later("hi")
    chat = line.http.post("/v1/chat/completions", json=CHAT).json()
    answering.join()
    job = poll(line, chat["id"])
    assert (job["id"], job["state"], job["output_text"]) == (chat["id"], "succeeded", "hi")
    assert [event for _, event, _ in events_of(line.http.get(f"/v1/jobs/{chat['id']}/events").text)][-1] == "end"


def test_deadline_and_eta(line: ApiLine) -> None:
    first = submit(line)
    wait_until(lambda: line.worker.claim().end(text="x") == "ok", "an end")
    late = submit(line, deadline_s=0.05)
    job = wait_until(lambda: (j := poll(line, late["id"]))["state"] == "failed" and j, "the deadline", 5)
    assert job["error"]["code"] == "deadline_exceeded"
    assert poll(line, first["id"])["state"] == "succeeded"
    wait_until(lambda: submit(line)["queue"]["eta_s"] is not None, "an estimate", 5)


def test_an_idempotency_key(line: ApiLine) -> None:
    replies = [line.http.post("/v1/jobs", json=CHAT, headers={"Idempotency-Key": "k-1"}) for _ in range(2)]
    assert replies[0].json()["id"] == replies[1].json()["id"]
    other = line.http.post("/v1/jobs", json={**CHAT, "seed": 1}, headers={"Idempotency-Key": "k-1"})
    assert other.status_code == 422
