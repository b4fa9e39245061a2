"""The chat stream against a server that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from cli.chat import plain
from cli.client import ApiError, ChatStream, Client, InLine, Resumed, Text
from cli.status import waiting_jobs, workers
from tests.processes import free_port

JOB = "chatcmpl-" + "a" * 24


def chunk(event_id: str, text: str) -> bytes:
    delta = {"id": JOB, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return f"id: {event_id}\ndata: {json.dumps(delta)}\n\n".encode()


class Script:
    """Answers in order: (status, body, whether the connection breaks after it)."""

    def __init__(self, *answers: tuple[int, bytes, bool]) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[str, str, str]] = []
        script = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                script.seen.append((self.command, self.path, self.headers.get("last-event-id", "")))
                status, body, breaks = script.answers.pop(0)
                self.send_response(status)
                if status == 200:
                    self.send_header("x-penstock-job-id", JOB)
                self.send_header("content-length", str(len(body) + (1000 if breaks else 0)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)

    def __enter__(self) -> Script:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.server.server_address[1]}/v1/")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client.PAUSE_S", 0.01)


def text_of(stream: ChatStream) -> str:
    return "".join(event.text for event in stream if isinstance(event, Text))


def test_a_broken_stream_goes_on_where_it_was() -> None:
    first = b": queued position=2 eta_s=1.5\n\n" + chunk("1-1", "") + chunk("1-2", "Hel")
    rest = chunk("2-3", "lo") + b"data: [DONE]\n\n"
    unavailable = b'{"error": {"message": "Redis is away"}}'
    with Script((200, first, True), (503, unavailable, False), (200, rest, False)) as script, script.client() as client:
        stream = client.chat({"model": "m", "messages": []})
        events = list(stream)
    assert events == [InLine("position=2 eta_s=1.5"), Text("Hel"), Resumed(), Text("lo")]
    resume = ("GET", f"/v1/chat/completions/{JOB}?stream=true", "1-2")
    assert script.seen == [("POST", "/v1/chat/completions", ""), resume, resume]
    assert stream.job == JOB


def test_a_break_before_any_event_asks_for_the_whole() -> None:
    rest = chunk("1-1", "x") + b"data: [DONE]\n\n"
    with Script((200, b"", True), (200, rest, False)) as script, script.client() as client:
        assert text_of(client.chat({})) == "x"
    assert script.seen[1] == ("GET", f"/v1/chat/completions/{JOB}?stream=true", "")


def test_an_error_in_the_stream_is_an_error() -> None:
    body = chunk("1-1", "x") + b'data: {"error": {"message": "poisoned", "code": "poisoned"}}\n\ndata: [DONE]\n\n'
    with Script((200, body, False)) as script, script.client() as client, pytest.raises(ApiError, match="poisoned"):
        list(client.chat({}))


def test_a_server_that_stops_is_a_break() -> None:
    """It says so in the stream; the job goes on, and so does the answer once the server is back."""
    stop = b'data: {"error": {"message": "try again", "code": "server_shutdown"}}\n\ndata: [DONE]\n\n'
    rest = chunk("1-2", "lo") + b"data: [DONE]\n\n"
    with Script((200, chunk("1-1", "Hel") + stop, False), (200, rest, False)) as script, script.client() as client:
        assert list(client.chat({})) == [Text("Hel"), Resumed(), Text("lo")]
    assert script.seen[1] == ("GET", f"/v1/chat/completions/{JOB}?stream=true", "1-1")


def test_what_does_not_speak_our_language_is_one_clear_line() -> None:
    with Script((200, b"<html>", False)) as script, script.client() as client, pytest.raises(ApiError, match="no JSON"):
        client.get("/v1/models")
    with pytest.raises(ApiError, match="is no URL"):
        Client("http://[::1")


def test_a_refusal_is_not_repeated() -> None:
    refusal = b'{"error": {"message": "no worker for m"}}'
    with (
        Script((503, refusal, False)) as script,
        script.client() as client,
        pytest.raises(ApiError, match="no worker for m"),
    ):
        list(client.chat({}))
    assert len(script.seen) == 1


def test_nothing_there_says_what_to_do() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(ApiError, match="start it with `penstock up`"),
    ):
        client.get("/v1/models")


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert plain("a\x1b[2Jb\tc\nd\x07\x9b1mé👩‍🚀") == "a[2Jb\tc\nd1mé👩‍🚀"


def test_waiting_jobs_are_read_from_the_metrics() -> None:
    name = "penstock:num_requests_waiting"
    text = f'# TYPE {name} gauge\n{name}{{model_name="a/b"}} 3.0\n{name}{{model_name="c"}} 0\n'
    assert waiting_jobs(text) == {"a/b": 3.0, "c": 0.0}


def test_brackets_in_a_reason_are_text() -> None:
    """The reason is a model's or a library's, and may look like markup."""
    card = dict.fromkeys(("running", "lanes", "tokens_per_s", "kv_used", "heartbeat"), 0)
    words = {"name": "w[b]", "model": "m", "state": "failed", "device": "cpu", "error": "no file [/x] for [red]it"}
    console = Console(record=True, width=200)
    answer = json.dumps({"data": [{**card, **words, "gpus": []}]}).encode()
    with Script((200, answer, False)) as script, script.client() as client:
        workers(console, client)
    assert "w[b]" in console.export_text(clear=False)
    assert "failed: no file [/x] for [red]it" in console.export_text()
