"""The whole line for tests of faults: a real API in this process, real workers, and clients that write down what they hear."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tasks.catalog import load_catalog
from tests.api_server import serve, settings_of
from tests.integration.worker_rig import WorkerRig
from tests.processes import wait_until


class Listener:
    """A client of one stream, reading in a thread of its own. `over` is empty while it reads, then says how it ended."""

    def __init__(self, url: str, path: str, body: Any = None, last_id: str = "") -> None:
        self.ids: list[str] = []
        self.text = ""
        self.comments = 0
        self.job = ""
        self.over = ""
        self._fields: dict[str, str] = {}  # of the event that has not ended yet
        headers = {"Last-Event-ID": last_id} if last_id else {}
        asked = {"method": "GET" if body is None else "POST", "url": url + path, "json": body, "headers": headers}
        self._thread = threading.Thread(target=self._read, args=(asked,), daemon=True)
        self._thread.start()

    def until(self, characters: int, timeout_s: float = 20.0) -> Listener:
        """Wait until it has so much of the answer."""

        def heard() -> bool:
            assert not self.over or len(self.text) >= characters, f"the stream ended early: {self.over}"
            return len(self.text) >= characters

        wait_until(heard, f"{characters} characters", timeout_s)
        return self

    def until_over(self, timeout_s: float = 30.0) -> Listener:
        """Wait until the stream has ended."""
        wait_until(lambda: self.over, "the end of a stream", timeout_s)
        self._thread.join(5)
        return self

    def check(self, before: Listener | None = None) -> Listener:
        """Every event once and in order; `before` is the client that this one went on for."""
        ids = [*(before.ids if before else []), *self.ids]
        seqs = [int(name.partition("-")[2]) for name in ids]
        assert seqs == sorted(set(seqs)), "an event came twice, or late"
        return self

    def _read(self, asked: dict[str, Any]) -> None:
        try:
            with httpx.stream(**asked, timeout=60) as reply:
                self.job = reply.headers.get("x-penstock-job-id", "")
                if reply.status_code != 200:
                    self.over = f"{reply.status_code} {json.loads(reply.read())['error']['code']}"
                    return
                for line in reply.iter_lines():
                    self._take(line)
            self.over = self.over or "cut"
        except httpx.HTTPError as error:
            self.over = self.over or f"broken: {type(error).__name__}"

    def _take(self, line: str) -> None:
        """An event counts once its blank line is there: a cut may leave half of one."""
        if line.startswith(":"):
            self.comments += 1
        elif line:
            name, _, value = line.partition(": ")
            self._fields[name] = value
        elif "data" in self._fields:
            self._hear(self._fields.pop("data"), self._fields)
            self._fields = {}

    def _hear(self, text: str, fields: dict[str, str]) -> None:
        if "id" in fields:
            self.ids.append(fields["id"])
        if text == "[DONE]":
            self.over = self.over or "done"
            return
        data = json.loads(text)
        if data.get("error"):
            self.over = data["error"]["code"]
        elif fields.get("event") == "end":
            self.over = data["state"]
        for choice in data.get("choices", []):
            self.text += choice["delta"].get("content") or ""
        self.text += data.get("text", "")


class Line:
    """One API and the workers of `rig`."""

    def __init__(self, rig: WorkerRig, url: str) -> None:
        self.rig = rig
        self.url = url
        self._ready = False

    def chat(self, text: str, **fields: Any) -> Listener:
        """A streamed chat. The first one waits for an API that knows of the worker: it hears of it within a second."""
        if not self._ready:
            wait_until(lambda: httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200, "a ready line")
            self._ready = True
        return Listener(self.url, "/v1/chat/completions", chat_body(text, stream=True, **fields))

    def submit(self, text: str, **fields: Any) -> str:
        """A job's id."""
        answer = httpx.post(f"{self.url}/v1/jobs", json=chat_body(text, **fields), timeout=20)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def events(self, job: str, last_id: str = "") -> Listener:
        """A job's events."""
        return Listener(self.url, f"/v1/jobs/{job}/events", last_id=last_id)


def chat_body(text: str, **fields: Any) -> dict[str, Any]:
    """A greedy chat with one message."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


@contextmanager
def whole_line(folder: Path, redis_url: str, lanes: int = 8, lease_s: float = 2.0) -> Iterator[Line]:
    """An API without a worker yet."""
    rig = WorkerRig(folder, redis_url, lanes, PENSTOCK_LEASE_S=str(lease_s))
    models = load_catalog(rig.models).entries.values()
    try:
        with serve(settings_of(redis_url, lease_s=lease_s, keepalive_s=0.5), *models) as url:
            yield Line(rig, url)
    finally:
        rig.close()
