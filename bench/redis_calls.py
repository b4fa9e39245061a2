"""Calls of `step.lua` from processes that do nothing else, and what they cost Redis: a part of `bench/redis_limit.py`."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.connection import Connection as RedisConnection

from tasks.connections import connect, connect_async
from tasks.events import Delta, encode
from tasks.jobs import JobSpec, new_id
from tasks.keys import key
from tasks.ledger import Claim, JobLedger, Write
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore

SPAWN = multiprocessing.get_context("spawn")
#: More than Redis answers to one generator: so many calls are packed.
CALLS_PER_S, TOKENS_PER_S = 10_000, 80_000


@dataclass(frozen=True)
class Work:
    """One row: `pace_s` 0 means as fast as Redis answers."""

    url: str
    generators: int
    jobs: int
    entries: int
    channels: int
    seconds: float
    pace_s: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What one row came to."""

    calls_per_s: float
    tokens_per_s: float
    redis_cores: float
    took_ms: list[float]

    @property
    def cpu_ms(self) -> float:
        """Redis' CPU time for one call."""
        return self.redis_cores / self.calls_per_s * 1000


PACKER = RedisConnection()  # never connected: it only lays out commands


class Packer(JobLedger):
    """A ledger whose steps are packed instead of sent."""

    def _run(self, name: str, *args: Any) -> Any:
        script = self._scripts[name]
        self.packed = b"".join(PACKER.pack_command("EVALSHA", script.sha, 0, *args))
        return []


def pack(url: str, claims: Sequence[Claim], entries: int, count: int) -> list[bytes]:
    """The calls of so many engine steps of these jobs."""
    packer, calls = Packer(connect(url, "bench"), load_settings()), []
    for step in range(count):
        writes = []
        for claim in claims:
            at = step * entries
            rows = [(encode(Delta(0, at + i, (1000 + (at + i) % 1000,), " word")), 1) for i in range(entries)]
            writes.append(Write(claim.spec.id, claim.fence, claim.seq + 1 + at, rows))
        packer.step(writes)
        calls.append(packer.packed)
    packer.close()
    return calls


async def submit(work: Work) -> None:
    """Put the jobs in line, each watched by one of the API processes, if there are any."""
    store = JobStore(connect_async(work.url, "bench"), load_settings())
    for number in range(work.generators * work.jobs):
        spec = JobSpec(new_id("chat"), "chat", "bench", (tuple(range(32)),), Sampling(max_tokens=10**6, seed=1))
        await store.submit(spec, limit=10**6, api=f"api{number % work.channels}" if work.channels else "")
    await store.close()


def claim(url: str, jobs: int) -> list[Claim]:
    """The jobs of one generator."""
    ledger = JobLedger(connect(url, "bench"), load_settings())
    claims = [each for _ in range(jobs) if isinstance(each := ledger.claim("bench", "w"), Claim)]
    assert len(claims) == jobs
    ledger.step([])  # Redis then knows the script by its digest
    ledger.close()
    return claims


def generate(work: Work, claims: list[Claim], pipe: Connection) -> None:
    """The body of a generator: pack, say so, wait for the word, and call until the time or the calls are over."""
    rate = 1 / work.pace_s if work.pace_s else min(CALLS_PER_S, TOKENS_PER_S / (work.jobs * work.entries))
    calls = pack(work.url, claims, work.entries, int(work.seconds * rate) + 1)
    parts = urlsplit(work.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        expected = b"*%d\r\n" % work.jobs + b"$2\r\nok\r\n" * work.jobs
        pipe.send("packed")
        begin = pipe.recv()
        pipe.send(call_all(connection, calls, expected, begin, work))


def call_all(connection: socket.socket, calls: list[bytes], expected: bytes, begin: float, work: Work) -> list[float]:
    """Milliseconds of each call."""
    took = []
    time.sleep(max(0.0, begin - time.time()))
    for number, call in enumerate(calls):
        if work.pace_s:
            time.sleep(max(0.0, begin + number * work.pace_s - time.time()))
        sent = time.perf_counter()
        connection.sendall(call)
        got = b""
        while len(got) < len(expected):
            got += connection.recv(65536)
        took.append((time.perf_counter() - sent) * 1000)
        assert got == expected, got[:300]
        if time.time() - begin >= work.seconds:
            break
    return took


def listen(url: str, channels: int, pipe: Connection) -> None:
    """The body of a subscriber for all channels, one connection each: reads and forgets, until the pipe closes."""
    clients = [redis.Redis.from_url(url).pubsub() for _ in range(channels)]
    for number, client in enumerate(clients):
        client.subscribe(key("relay", f"api{number}"))
        client.get_message(timeout=1)
    sockets = [client.connection._sock for client in clients]
    pipe.send("subscribed")
    while not pipe.poll():
        for each in sockets:
            each.setblocking(False)
            try:
                while each.recv(1 << 20):
                    pass
            except BlockingIOError:
                pass
        time.sleep(0.005)


def measure(work: Work) -> Measured:
    """One row."""
    with redis.Redis.from_url(work.url) as client:
        client.flushall()
        asyncio.run(submit(work))
        pairs = []
        for number in range(work.generators + bool(work.channels)):
            mine, theirs = SPAWN.Pipe()
            if number < work.generators:
                process = SPAWN.Process(target=generate, args=(work, claim(work.url, work.jobs), theirs))
            else:
                process = SPAWN.Process(target=listen, args=(work.url, work.channels, theirs))
            process.start()
            pairs.append((process, mine))
        for _, pipe in pairs:
            pipe.recv()
        cpu, begin = redis_cpu_s(client), time.time() + 0.2
        generators = pairs[: work.generators]
        for number, (_, pipe) in enumerate(generators):
            pipe.send(begin + work.pace_s * number / work.generators)  # workers are not in step with each other
        took = [pipe.recv() for _, pipe in generators]
        seconds, cpu = time.time() - begin, redis_cpu_s(client) - cpu
        if work.channels:
            pairs[-1][1].send("end")
        for process, _ in pairs:
            process.join(10)
    calls = sum(map(len, took))
    rate = calls / seconds
    flat = sorted(ms for each in took for ms in each[len(each) // 10 :])
    return Measured(rate, rate * work.jobs * work.entries, cpu / seconds, flat)


def redis_cpu_s(client: redis.Redis) -> float:
    """Redis' CPU time so far, with that of the thread that syncs its file."""
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
