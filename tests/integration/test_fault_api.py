"""An API process that is killed in mid-stream, and a client that reads a few bytes a second."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from tasks.keys import key
from tests.api_server import ScriptedWorker
from tests.integration.line_rig import Listener, chat_body
from tests.integration.test_api_lifecycle import api_process
from tests.integration.worker_rig import WorkerRig, expected
from tests.processes import wait_until

TEXT = "Count from 1 to 80. [step_ms=20]"


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url)
    rig.start()
    yield rig
    rig.close()


def ready(url: str) -> None:
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "a ready API")


def test_clients_of_a_killed_api_go_on_at_another(tmp_path: Path, redis_url: str, pool: WorkerRig) -> None:
    """Every event once over both streams. A chat that is not stored lives on long enough for that, too."""
    with api_process(tmp_path, redis_url) as (first, process), api_process(tmp_path, redis_url) as (second, _):
        for url in (first, second):
            ready(url)
        job = str(httpx.post(f"{first}/v1/jobs", json=chat_body(TEXT)).json()["id"])
        chats = [chat_body(TEXT, stream=True), chat_body(TEXT, stream=True, store=True)]
        clients = [Listener(first, "/v1/chat/completions", body) for body in chats]
        clients.append(Listener(first, f"/v1/jobs/{job}/events"))
        for before in clients:
            before.until(40)
        process.send_signal(signal.SIGKILL)
        for before in clients:
            assert before.until_over().over.startswith("broken")  # a cut, never a short answer that looks complete
            events = f"/v1/jobs/{before.job or job}/events"
            after = Listener(second, events, last_id=before.ids[-1])
            assert after.until_over().check(before).over == "succeeded"
            assert before.text + after.text == expected(TEXT)
            assert pool.job(before.job or job).attempt == 1


def rss_mb(pid: int) -> float:
    """Memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Slow:
    """A client with a receive buffer of a few kilobytes, which takes from it only what `take` says."""

    def __init__(self, url: str, body: object) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(20)
        self._socket.connect((host, int(port)))
        payload = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        self._got = bytearray()

    def take(self, size: int) -> bool:
        """At most so many bytes; False at the end."""
        data = self._socket.recv(size)
        self._got += data
        return bool(data)

    def take_all(self) -> bytes:
        """Everything, from the first byte on, at full speed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while b"data: [DONE]" not in self._got[-100:]:
            assert self.take(1 << 20), "the stream ended early"
        return bytes(self._got)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def slow_client(url: str, body: object) -> Iterator[Slow]:
    made = Slow(url, body)
    try:
        yield made
    finally:
        made.close()


def answered_quickly(url: str, worker: ScriptedWorker) -> float:
    """Another client's chat, from its request to its end, in seconds."""
    began = time.monotonic()
    chat = Listener(url, "/v1/chat/completions", chat_body("hi", stream=True))
    attempt = worker.claim()
    attempt.say("quick ")
    attempt.end(text="answer")
    assert chat.until_over().check().text == "quick answer"
    return time.monotonic() - began


def test_a_slow_reader_holds_nobody_up_and_costs_no_memory(tmp_path: Path, redis_url: str) -> None:
    """Thirty megabytes pass it by while it takes ten bytes at a time. Then it reads on, and gets every entry once."""
    entries, word = 6000, "w" * 5000
    worker = ScriptedWorker(redis_url).appear()
    with api_process(tmp_path, redis_url) as (url, process):
        ready(url)
        with slow_client(url, chat_body("hi", stream=True, store=True)) as slow:
            large = worker.claim()
            large.say(word)
            assert slow.take(400)
            before, waits = rss_mb(process.pid), []
            for number in range(1, entries, 4):
                assert large.say(*[word] * min(4, entries - number)) == "ok"
                if number % 500 == 1:
                    large.renew()
                    slow.take(10)
                    waits.append(answered_quickly(url, worker))
            assert large.end(text="the end") == "ok"
            grown = rss_mb(process.pid) - before
            assert max(waits) < 2
            assert grown < 20, f"{grown:.0f} MB for a client that does not read"
            lines = slow.take_all().split(b"\n")
        ids = [int(line.rpartition(b"-")[2]) for line in lines if line.startswith(b"id: ")]
        assert ids == list(range(1, entries + 4))  # started, the words, the last word, the end
        assert sum(line.count(word.encode()) for line in lines) == entries
        with redis.Redis.from_url(redis_url) as client:
            name = key("watch", large.spec.id)
            wait_until(lambda: not client.exists(name), "a job that nobody reads any more")
    worker.close()
