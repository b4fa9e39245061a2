"""The load generator, in its own process, against a server that misbehaves on purpose."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.load import run_load
from bench.load_http import GAVE_UP, Record
from bench.load_plan import Plan, Shot, chat

SILENCE_S = 30.0


def event(**choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


GOOD = [
    event(delta={"role": "assistant", "content": ""}),
    b": a comment\n\n" + event(delta={"content": "a"}),
    event(delta={"content": "b"})[:9],  # an event in two pieces
    event(delta={"content": "b"})[9:],
    event(delta={}, finish_reason="length").replace(b"\n", b"\r\n"),
    b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n',
    b"data: [DONE]\n\n",
]


class Answering(BaseHTTPRequestHandler):
    """Does what the prompt says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        if asked == "refuse":
            self._refuse()
        elif asked == "silence":
            over.wait(SILENCE_S)
        else:
            self._stream(asked)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _refuse(self) -> None:
        self.send_response(429)
        self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _stream(self, asked: str) -> None:
        self.send_response(200)
        self.send_header("x-penstock-eta-s", "1.5")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = {"good": GOOD, "cut": GOOD[:4], "stall": GOOD[:4], "fail": [b'data: {"error": {"code": "lost"}}\n\n']}
        for piece in pieces[asked]:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if asked == "stall":
            over.wait(SILENCE_S)
        if asked in ("good", "fail"):
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


over = threading.Event()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    over.set()
    server.shutdown()
    thread.join(10)
    server.server_close()


def load(port: int, *prompts: str, processes: int = 1, concurrency: int = 0) -> list[Record]:
    shots = [Shot(number * 0.01, prompt, chat("m", prompt, 8)) for number, prompt in enumerate(prompts)]
    return run_load(Plan("x", shots, 1.0, concurrency, 1.5), port, processes=processes).records


def test_every_kind_of_answer_is_told_apart(port: int) -> None:
    records = {record.tag: record for record in load(port, "good", "refuse", "cut", "fail", "stall", "silence")}
    assert {tag: record.error for tag, record in records.items()} == {
        "good": "",
        "refuse": "HTTP 429",
        "cut": "cut off",
        "fail": "error in the stream: lost",
        "stall": GAVE_UP,
        "silence": "no answer in time",
    }
    good = records["good"]
    assert (good.tokens, good.finish, good.eta_s, len(good.chunks)) == (7, "length", 1.5, 2)
    assert good.intended <= good.sent <= good.head <= good.chunks[0] <= good.end
    assert records["refuse"].retry_after == "7"


def test_a_port_where_nobody_listens_is_no_answer() -> None:
    (record,) = load(1, "good")
    assert record.error.startswith("no connection")


def test_a_closed_loop_asks_again_and_ends_with_its_shots(port: int) -> None:
    records = load(port, *["good"] * 20, processes=2, concurrency=4)
    assert [record.error for record in records] == [""] * 20
