"""From the SIGKILL of a busy worker to the next token at the client, for several leases.

A Redis, an API process and two workers with the scripted engine, all its own. Streams run all the time; again and again
the worker that runs most of them is killed, and each of its streams is timed until its first token from the other one,
which has room for all. Then a third worker takes the dead one's place, for the next kill.

    python bench/recovery.py --leases 0.5 1 2 5 --kills 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis.asyncio
from servers import free_port, own_redis

from tasks.keys import key

MODELS = '[[model]]\nname = "fake"\nengine = "fake"\nmax_num_seqs = {lanes}\n'
PROMPT = "[tokens=7000] [step_ms={step_ms}]"
ROOT = Path(__file__).parent.parent


@dataclass
class Stream:
    """One client: when it last heard a token, under which fence, and since when it waits for one of a higher fence."""

    job: str = ""
    fence: int = 0
    killed_at: float | None = None
    recovered_s: float | None = None

    def hear(self, fence: int, now: float) -> None:
        """A token came."""
        if self.killed_at is not None and self.recovered_s is None and fence > self.fence:
            self.recovered_s = now - self.killed_at
        self.fence = fence


class Pool:
    """The processes of one measurement; `close` ends them."""

    def __init__(self, folder: Path, redis_url: str, lease_s: float, lanes: int) -> None:
        (folder / "models.toml").write_text(MODELS.format(lanes=lanes))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self._env = inherited | {
            "PENSTOCK_REDIS_URL": redis_url,
            "PENSTOCK_MODELS": str(folder / "models.toml"),
            "PENSTOCK_MODEL": "fake",
            "PENSTOCK_DATA_DIR": str(folder),
            "PENSTOCK_PORT": str(self.port),
            "PENSTOCK_LEASE_S": str(lease_s),
            "PENSTOCK_MAX_LOSSES": "1000",  # a stream here outlives more workers than one should
            "OMP_NUM_THREADS": "1",
        }
        self._log = (folder / f"log-{lease_s}").open("wb")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("api")
        for _ in range(2):
            self.start_worker()

    def start_worker(self) -> None:
        """One more."""
        self._start("celery", "-A", "workers.main", "worker")

    def alive(self) -> set[int]:
        """Those that run."""
        return {process.pid for process in self._processes if process.poll() is None}

    def kill(self, pid: int) -> None:
        """SIGKILL one of them."""
        process = next(process for process in self._processes if process.pid == pid)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        self._log.close()

    def _start(self, *module: str) -> None:
        command = [sys.executable, "-m", *module]
        self._processes.append(subprocess.Popen(command, cwd=ROOT, env=self._env, stdout=self._log, stderr=self._log))


class Measurement:
    """Keeps streams running and kills workers."""

    def __init__(self, pool: Pool, store: redis.asyncio.Redis, options: argparse.Namespace) -> None:
        self._pool = pool
        self._store = store
        self._options = options
        self._streams = [Stream() for _ in range(options.streams)]
        self.recovered_s: list[float] = []

    async def run(self) -> None:
        """All kills."""
        async with httpx.AsyncClient(base_url=self._pool.url, timeout=60) as http:
            await _until(lambda: self._ready(http), 60)  # also the API: before, it would refuse the first jobs
            readers = [asyncio.create_task(self._read(http, stream)) for stream in self._streams]
            try:
                for _ in range(self._options.kills):
                    await self._kill_once(http)
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)

    async def _kill_once(self, http: httpx.AsyncClient) -> None:
        """When all streams run: kill the busier worker, and wait until all of its streams go on."""

        async def all_run() -> bool:
            return len(await self._owners()) == len(self._streams)

        await _until(lambda: self._ready(http), 60)
        await _until(all_run, 60)
        await asyncio.sleep(random.random())  # not in step with anything that happens every second
        owners = await self._owners()
        victim, _ = Counter(owners.values()).most_common(1)[0]
        hit = [stream for stream in self._streams if owners.get(stream.job) == victim]
        for stream in hit:
            stream.killed_at, stream.recovered_s = time.monotonic(), None
        self._pool.kill(victim)

        async def recovered() -> bool:
            return all(stream.recovered_s is not None for stream in hit)

        await _until(recovered, 60)
        self._pool.start_worker()  # only now: its start would take the survivor's processor
        for stream in hit:
            self.recovered_s.append(stream.recovered_s or 0.0)
            stream.killed_at = None

    async def _read(self, http: httpx.AsyncClient, stream: Stream) -> None:
        """One job after the other, each read to its end."""
        prompt = PROMPT.format(step_ms=self._options.step_ms)
        body = {"model": "fake", "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        while True:
            answer = await http.post("/v1/jobs", json=body)
            answer.raise_for_status()
            stream.job = answer.json()["id"]
            stream.fence = 0
            async with http.stream("GET", f"/v1/jobs/{stream.job}/events") as reply:
                fence = 0
                async for line in reply.aiter_lines():
                    if line.startswith("id: "):
                        fence = int(line[4:].partition("-")[0])
                    elif line.startswith('data: {"choice"') and json.loads(line[6:]).get("tokens"):
                        stream.hear(fence, time.monotonic())

    async def _owners(self) -> dict[str, int]:
        """The process that runs each job."""
        owners = {}
        for stream in self._streams:
            worker = await self._store.hget(key("job", stream.job), "worker") if stream.fence else None
            if worker:
                owners[stream.job] = int(str(worker).split("@")[0].split("-")[-2])  # <model>-<pid>-<random>@<host>
        return owners

    async def _ready(self, http: httpx.AsyncClient) -> bool:
        try:
            workers = (await http.get("/v1/workers")).json()["data"]
        except (httpx.HTTPError, KeyError):
            return False
        ready = {worker["pid"] for worker in workers if worker["state"] == "ready"}
        return len(ready & self._pool.alive()) == 2


async def _until(look: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await look():
                return
            await asyncio.sleep(0.05)


def row(lease_s: float, kills: int, took: list[float]) -> str:
    """One line of the table."""
    ordered = sorted(took)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"| {lease_s:g} | {kills} | {len(took)} | {ordered[0]:.2f} | {statistics.median(ordered):.2f} "
        f"| {p99:.2f} | {ordered[-1]:.2f} |"
    )


async def measure(lease_s: float, redis_url: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """One lease."""
    store = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    await store.flushall()
    pool = Pool(folder, redis_url, lease_s, options.streams)
    try:
        measurement = Measurement(pool, store, options)
        await measurement.run()
    finally:
        pool.close()
        await store.aclose()
    return measurement.recovered_s


def main() -> None:
    """Measure each lease and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=float, nargs="+", default=[0.5, 1.0, 2.0, 5.0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--step-ms", type=int, default=20)
    options = parser.parse_args()
    print(f"{options.streams} streams on 2 workers, steps of {options.step_ms} ms, {os.cpu_count()} cores\n")
    print("| lease s | kills | streams hit | min s | p50 s | p99 s | max s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name, own_redis(Path(name) / "redis") as url:
        for lease_s in options.leases:
            took = asyncio.run(measure(lease_s, url, Path(name), options))
            print(row(lease_s, options.kills, took), flush=True)


if __name__ == "__main__":
    main()
