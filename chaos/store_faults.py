"""What can befall Redis and the connections to it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
from redis.exceptions import RedisError

from chaos.house import FAKE, Member, until
from chaos.scene import PATIENCE_S, Hit, Missed, Scene, ended

#: How long a server that comes back may read its file.
LOAD_S = 60.0
#: What Sentinel may take, who waits between two failovers.
FAILOVER_S = 30.0


async def redis_kill(scene: Scene) -> Hit:
    """SIGKILL and a restart."""
    return await _restart(scene, scene.rng.uniform(0.1, 4.0), power_cut=False)


async def redis_power(scene: Scene) -> Hit:
    """The same with the loss of what was not yet on disk; only for `appendfsync everysec`."""
    if scene.house.plan.appendfsync == "always":
        raise Missed("nothing is lost with appendfsync always")
    return await _restart(scene, scene.rng.uniform(0.1, 2.0), power_cut=True)


async def redis_failover(scene: Scene) -> Hit:
    """The primary is killed, and Sentinel makes its replica the primary; what that had not got is lost."""
    house = scene.house
    pair = house.pair
    if pair is None:
        raise Missed("Redis has no replica")
    if not await until(lambda: all(member.ready for member in pair.others), FAILOVER_S):
        raise Missed("the replica is not in step")
    server = await scene.server()
    jobs = await scene.running()
    with scene.grip(server):
        at = await _kill(server)
        chosen = await pair.fail_over(FAILOVER_S)
        server.held = False
        up = await until(lambda: house.redis.ready, LOAD_S)
    trouble = "" if chosen and up else "the replica did not become the primary"
    return Hit(f"{server.name}, replaced by {house.redis.name}", at, jobs, trouble)


async def redis_pause(scene: Scene) -> Hit:
    """SIGSTOP: every call hangs, and is carried out long after its caller gave up. Nobody may lose a lease by it."""
    house, server = scene.house, await scene.server()
    jobs, pids = await house.jobs(), {member.name: member.pid for member in house.workers}
    before = await scene.owners([job for held in jobs.values() for job in held])
    with scene.grip(server):
        at = time.monotonic()
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(house.plan.redis_pause_s)
        server.signal(signal.SIGCONT)
        await asyncio.sleep(house.plan.lease_s + 1.5)
        after = await scene.owners(list(before))
    # A poisoned job can have killed a worker meanwhile.
    lived = [job for member in house.workers if member.pid == pids[member.name] for job in jobs.get(member.name, ())]
    lost = [job for job in lived if job in before and job in after and after[job].losses > before[job].losses]
    trouble = f"{len(lost)} jobs lost their lease by a pause: {', '.join(lost[:3])}" if lost else ""
    return Hit("redis", at, tuple(before), trouble)


async def redis_full(scene: Scene) -> Hit:
    """No memory left under `noeviction`: writes are refused for a while, and submits with 503."""
    server = await scene.server()
    jobs = await scene.running()
    with scene.grip(server):
        at = time.monotonic()
        try:
            await scene.store.config_set("maxmemory", "1")
            accepted = await _submit(scene)
            await asyncio.sleep(scene.rng.uniform(1.0, 5.0))
        finally:
            await _insist(lambda: scene.store.config_set("maxmemory", "0"))
    return Hit("redis", at, jobs, "a submit was accepted by a full Redis" if accepted else "")


async def kill_broker(scene: Scene) -> Hit:
    """Cut Celery's connections."""
    return await _cut(scene, "penstock-celery")


async def kill_writer(scene: Scene) -> Hit:
    """Cut the workers' own connections."""
    return await _cut(scene, "penstock-worker")


async def kill_commands(scene: Scene) -> Hit:
    """Cut the API's connections for commands."""
    return await _cut(scene, "penstock-api")


async def kill_subscription(scene: Scene) -> Hit:
    """Cut the API's subscriptions."""
    return await _cut(scene, "penstock-relay")


async def _kill(server: Member) -> float:
    """SIGKILL, and it stays down; when that was."""
    pid, at = server.pid, time.monotonic()
    server.held, server.ready = True, False
    server.signal(signal.SIGKILL)
    await ended(server, pid, 5.0)
    return at


async def _restart(scene: Scene, seconds: float, power_cut: bool) -> Hit:
    server = await scene.server()
    jobs = await scene.running()
    with scene.grip(server):
        at = await _kill(server)
        lost = scene.house.aof.cut() if power_cut else 0
        await asyncio.sleep(seconds)
        server.held = False
        up = await until(lambda: server.ready, LOAD_S)
    target = f"redis, {lost} bytes lost" if power_cut else "redis"
    return Hit(target, at, jobs, "" if up else f"Redis was not back {LOAD_S:.0f} s later")


async def _cut(scene: Scene, name: str) -> Hit:
    """CLIENT KILL of all connections of a kind, or of some."""
    await scene.server()
    jobs = await scene.running()
    found = await _connections(scene, name)
    chosen = found if scene.rng.random() < 0.5 else scene.rng.sample(found, (len(found) + 1) // 2)
    at = time.monotonic()
    with suppress(RedisError, OSError):
        for client in chosen:
            await scene.store.client_kill_filter(_id=client)
    return Hit(f"{len(chosen)} of {len(found)} {name}", at, jobs)


async def _connections(scene: Scene, name: str) -> list[str]:
    """The ids of all connections of a kind; after an outage they are not back at once."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = [client["id"] for client in await scene.store.client_list() if client["name"] == name]
        if found:
            return found
        if time.monotonic() > deadline:
            raise Missed(f"there is no {name}")
        await asyncio.sleep(0.1)


async def _submit(scene: Scene) -> bool:
    """Whether any API that answers takes a job now."""
    body = {"model": FAKE, "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        for url in scene.house.urls():
            with suppress(httpx.HTTPError):
                answer = await http.post(f"{url}/v1/jobs", json=body)
                return answer.status_code == 202
    return False


async def _insist(call: Callable[[], Awaitable[Any]]) -> None:
    """Until it is done: a limit that stays would be a fault that never heals."""
    while True:
        try:
            await call()
            return
        except (RedisError, OSError):
            await asyncio.sleep(0.2)
