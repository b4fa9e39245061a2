"""The load generator: runs a plan in processes of its own and gives back what became of every request.

Open loop: requests go out at their intended times, however slow the server is, and latency counts from the intended
time, not from when the generator came to it. Its own processor time and lateness are part of the result.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.load_http import Record, ask, request_bytes
from bench.load_plan import Plan, Shot

ROOT = Path(__file__).parent.parent
PATH = "/v1/chat/completions"
#: Between the start of the processes and the first request.
LEAD_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """Every request's record, and the generator's processor seconds by seconds that it ran."""

    plan: Plan
    records: list[Record]
    cpu_share: float


def run_load(plan: Plan, port: int, host: str = "127.0.0.1", processes: int = 1) -> Outcome:
    """Run a plan, dealt out to so many processes. Blocks until the last answer, at most `patience_s` after the plan."""
    begin = time.monotonic() + LEAD_S
    children = [_start(part, host, port, begin) for part in _deal(plan, processes)]
    limit_s = LEAD_S + plan.seconds + plan.patience_s + 30
    try:
        texts = [child.communicate(json.dumps(spec).encode(), timeout=limit_s)[0] for child, spec in children]
    finally:
        for child, _ in children:
            child.kill()
    results = [json.loads(text) for text in texts]
    records = [Record(**row) for result in results for row in result["records"]]
    return Outcome(plan, records, sum(result["cpu_share"] for result in results))


def _deal(plan: Plan, processes: int) -> Iterator[Plan]:
    for number in range(min(processes, plan.concurrency or processes)):
        share = len(range(number, plan.concurrency, processes))
        yield Plan(plan.name, plan.shots[number::processes], plan.seconds, share, plan.patience_s)


def _start(plan: Plan, host: str, port: int, begin: float) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    command = [sys.executable, "-m", "bench.load"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return child, {"plan": asdict(plan), "host": host, "port": port, "begin": begin}


class Generator:
    """One process of the load."""

    def __init__(self, plan: Plan, host: str, port: int, begin: float) -> None:
        self._plan = plan
        self._host = host
        self._port = port
        self._begin = begin
        self._requests = [request_bytes(host, port, PATH, shot.body) for shot in plan.shots]

    async def run(self) -> list[Record]:
        """All requests."""
        shots = zip(self._plan.shots, self._requests, strict=True)
        await asyncio.sleep(self._begin - time.monotonic())
        if self._plan.concurrency:
            records: list[Record] = []
            await asyncio.gather(*(self._client(shots, records) for _ in range(self._plan.concurrency)))
            return records
        tasks = []
        for shot, request in shots:
            if (wait := self._begin + shot.at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._ask(Record(shot.tag, shot.at), request)))
        return await asyncio.gather(*tasks)

    async def _client(self, shots: Iterator[tuple[Shot, bytes]], records: list[Record]) -> None:
        """One of the closed loop: the next request as soon as the last one has its answer, until time is up."""
        while (now := time.monotonic() - self._begin) < self._plan.seconds and (taken := next(shots, None)):
            shot, request = taken
            records.append(await self._ask(Record(shot.tag, now), request))

    async def _ask(self, record: Record, request: bytes) -> Record:
        return await ask(self._host, self._port, request, record, self._begin, self._plan.patience_s)


def main() -> None:
    """A child: what to do comes on stdin as JSON, what became of it goes to stdout."""
    spec = json.load(sys.stdin)
    shots = [Shot(**shot) for shot in spec["plan"].pop("shots")]
    generator = Generator(Plan(shots=shots, **spec["plan"]), spec["host"], spec["port"], spec["begin"])
    cpu = time.process_time()
    records = uvloop.run(generator.run())
    ran_s = time.monotonic() - spec["begin"]
    json.dump(
        {"records": [asdict(record) for record in records], "cpu_share": (time.process_time() - cpu) / ran_s},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
