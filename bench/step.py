"""Times the one write per engine step: `step` for many jobs with one new token each, all watched by one API process.

It flushes the Redis that it is given, so it starts one of its own unless a URL is passed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import redis
from servers import own_redis

from tasks.connections import connect, connect_async
from tasks.events import Delta, encode
from tasks.jobs import JobSpec, new_id
from tasks.keys import key
from tasks.ledger import Claim, JobLedger, Write
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore


async def submit(url: str, jobs: int, channels: int) -> None:
    """Put the jobs in line; each is watched by one of the API processes."""
    store = JobStore(connect_async(url, "bench"), load_settings())
    for number in range(jobs):
        spec = JobSpec(new_id("chat"), "chat", "bench", ((1, 2, 3),), Sampling(max_tokens=10**6, seed=1))
        await store.submit(spec, limit=jobs, api=f"api{number % channels}")
    await store.close()


def measure(url: str, jobs: int, channels: int, steps: int) -> tuple[list[float], float]:
    """Milliseconds of each step, sorted, and Redis' own CPU time for one. The relays' subscriptions are real, but nobody reads what arrives."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
        relay = client.pubsub()
        relay.subscribe(*(key("relay", f"api{number}") for number in range(channels)))
        asyncio.run(submit(url, jobs, channels))
        ledger = JobLedger(connect(url, "bench"), load_settings())
        claims = [claim for _ in range(jobs) if isinstance(claim := ledger.claim("bench", "w"), Claim)]
        assert len(claims) == jobs
        took, cpu = [], cpu_s(client)
        for step in range(steps):
            entry = (encode(Delta(0, step, (1000 + step % 1000,), " word")), 1)
            writes = [Write(claim.spec.id, claim.fence, claim.seq + 1 + step, [entry]) for claim in claims]
            begin = time.perf_counter()
            answers = ledger.step(writes)
            took.append((time.perf_counter() - begin) * 1000)
            assert all(answer.verdict == "ok" for answer in answers)
            while relay.get_message(timeout=0):
                pass
        cpu = (cpu_s(client) - cpu) / steps * 1000
        ledger.close()
        relay.close()
    return sorted(took[steps // 10 :]), cpu  # without the first tenth, which warms up


def cpu_s(client: redis.Redis) -> float:
    """Redis' CPU time so far, in seconds: unlike the clock, it does not count waiting for a busy machine."""
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=64, help="jobs that emit in every step (default 64)")
    parser.add_argument("--channels", type=int, default=1, help="API processes that watch them (default 1)")
    parser.add_argument("--steps", type=int, default=1000, help="steps to time (default 1000)")
    parser.add_argument(
        "--redis", default="", metavar="URL", help="a Redis that may be FLUSHED; default: one of its own"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        url = options.redis or stack.enter_context(own_redis(Path(folder)))
        took, cpu = measure(url, options.jobs, options.channels, options.steps)
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"step() of {options.jobs} jobs on {options.channels} channel(s), {len(took)} steps: ", end="")
    print(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {p50 * 1000 / options.jobs:.1f} µs per token; Redis' CPU {cpu:.2f} ms")


if __name__ == "__main__":
    main()
