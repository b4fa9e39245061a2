"""What the queue adds to the time to first token on an idle pool, and where: a part of `bench/overhead.py`.

Requests go one after the other, alternating with the same prompt in an engine's own process. Redis' MONITOR says when each
of the pool's calls reached it, in microseconds and on the same clock as this process, so no product code is touched:

    client sends ─ submit ─▶ ticket, Celery ─ claim ─▶ log read ─▶ engine ─ step ─▶ relay ─▶ client has the first text
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from engine_alone import EngineAlone
from pool_rig import PoolRig, Served, prompt_of

from tasks import lua

LINE = re.compile(r'\+(\d+\.\d+) \[\d+ ([^\]]+)\] "(\w+)" "([^"]*)"')
STAGES = (
    "client → submit",
    "submit → claim",
    "claim → engine",
    "engine and publisher",
    "step → relay",
    "relay → client",
)
WARM_UP = 20
STEP_MS = 10  # of the fake engine


@dataclass(frozen=True)
class Call:
    """One call that Redis saw. `name` is a script's, or the command's."""

    at: float
    name: str
    text: str


class Monitor:
    """Redis' calls, as they come."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._scripts = {hashlib.sha1(lua.source(name).encode()).hexdigest(): name for name in lua.NAMES}
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0))
        self._socket.sendall(b"MONITOR\r\n")
        self._calls: list[Call] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self) -> list[Call]:
        """Those since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def close(self) -> None:
        """End it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _read(self) -> None:
        for line in self._socket.makefile("r", encoding="utf-8", errors="replace"):
            found = LINE.match(line)
            if found is None:
                continue
            at, _, command, first = found.groups()
            if command in ("EVALSHA", "XRANGE", "PUBLISH"):
                self._calls.append(Call(float(at), self._scripts.get(first, command), line))


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent, when the first text came, and the job's id."""

    sent: float
    first: float
    job: str


class Client:
    """One connection, kept."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, body: str) -> Asked:
        """One streamed completion, read to its end."""
        head = "POST /v1/completions HTTP/1.1\r\nHost: pool\r\nContent-Type: application/json\r\n"
        data = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        sent, first, got = time.time(), 0.0, b""
        self._socket.sendall(data)
        while not got.endswith(b"0\r\n\r\n"):
            part = self._socket.recv(65536)
            now = time.time()
            if not part:
                raise SystemExit(f"the API closed the connection: {got!r}")
            got += part
            if not first and b"\nid: " in got:
                first = now
        job = re.search(rb"x-penstock-job-id: (\S+)", got)
        if not first or job is None:
            raise SystemExit(f"no stream: {got!r}")
        return Asked(sent, first, job[1].decode())

    def close(self) -> None:
        """End it."""
        self._socket.close()


def stages(asked: Asked, calls: list[Call]) -> list[float | None]:
    """Milliseconds of each of `STAGES`; None where a call was not seen, as by a pool that does without it."""
    mine = [call for call in calls if asked.job in call.text]
    submit = next((call.at for call in mine if call.name == "submit"), None)
    claim = next((call.at for call in calls if call.name == "claim" and call.at >= (submit or 0)), None)
    read = next((call.at for call in mine if call.name == "XRANGE" and call.at >= (claim or 0)), claim)
    step = next((call.at for call in mine if call.name == "step"), None)
    relay = next((call.at for call in mine if call.name == "PUBLISH" and call.at >= (step or 0)), None)
    marks = [asked.sent, submit, claim, read, step, relay, asked.first]
    return [None if a is None or b is None else (b - a) * 1000 for a, b in itertools.pairwise(marks)]


def measure_first(rig: PoolRig, engine: EngineAlone, model: Served, requests: int, seed: int) -> None:
    """Ask, and print two tables."""
    rng, client, monitor = random.Random(seed), Client(rig.port), Monitor(rig.redis_url)
    alone: list[float] = []
    asked: list[tuple[Asked, list[float | None]]] = []
    try:
        for number in range(requests + WARM_UP):
            prompt = prompt_of(rng, model, 4, STEP_MS)
            body = {"model": model.name, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            own = engine.ask({"do": "first", "prompt": prompt, "max_tokens": 4})["first_s"] * 1000
            time.sleep(rng.uniform(0.01, 0.06))  # an idle pool, and not in step with anything
            monitor.take()
            one = client.ask(json.dumps(body | {"stream": True}))
            time.sleep(0.01)  # the monitor's lines come after the calls
            if number >= WARM_UP:
                alone.append(own)
                asked.append((one, stages(one, monitor.take())))
    finally:
        client.close()
        monitor.close()
    report(model.name, alone, asked)


def report(model: str, alone: list[float], asked: list[tuple[Asked, list[float | None]]]) -> None:
    """Both tables."""
    ttft = [(one.first - one.sent) * 1000 for one, _ in asked]
    added = [each - statistics.median(alone) for each in ttft]
    outside = [
        sum(each for name, each in zip(STAGES, parts, strict=True) if each is not None and name != STAGES[3])
        for _, parts in asked
    ]
    print(f"\n{model}, idle pool, {len(asked)} requests one after the other:\n")
    print("| time to first token, ms | p50 | p90 | p99 | max |\n|---|---|---|---|---|")
    print(f"| the engine alone | {quantiles(alone)} |")
    print(f"| through the pool | {quantiles(ttft)} |")
    print(f"| added: through the pool - the engine's median | {quantiles(added)} |")
    print(f"| added outside the worker's engine and publisher threads | {quantiles(outside)} |")
    for at, name in enumerate(STAGES):
        seen = [parts[at] for _, parts in asked]
        print(f"| of it: {name} | {quantiles([each for each in seen if each is not None])} |", flush=True)


def quantiles(values: list[float]) -> str:
    """Four cells."""
    if not values:
        return "- | - | - | -"
    ordered = sorted(values)
    picks = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.9, 0.99, 1.0)]
    return " | ".join(f"{each:.2f}" for each in picks)
