"""What can befall the API, the line with its tickets, and the supervisor."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from contextlib import suppress

from redis.exceptions import RedisError

from chaos.house import Member, until
from chaos.members import children_of, parent_of
from chaos.scene import Hit, Missed, Scene, ended
from tasks.errors import StoreDown
from tasks.generate import ticket_template
from tasks.keys import queue_of
from tasks.settings import load_settings
from tasks.store import JobStore

#: What an API process may take to end its streams and itself.
STOP_S = 7.0
#: In what time a killed supervisor's children are gone, and what the harness may take to notice.
ORPHANS_S, NOTICE_S = 2.0, 0.3
#: How long a ticket is waited for; workers that wait for one come first.
STEAL_S = 3


async def api_kill(scene: Scene) -> Hit:
    """SIGKILL."""
    return await _end_api(scene, signal.SIGKILL)


async def api_stop(scene: Scene) -> Hit:
    """SIGTERM: every stream gets a proper end, and the process goes."""
    return await _end_api(scene, signal.SIGTERM)


async def ticket_double(scene: Scene) -> Hit:
    """Tickets that come twice, some of them of no job."""
    model, jobs = await _line(scene)
    at = time.monotonic()
    for _ in range(scene.rng.randint(1, 4)):
        ticket = _forge(model)
        await scene.store.lpush(queue_of(model), ticket, ticket)
    return Hit(queue_of(model), at, jobs)


async def ticket_lost(scene: Scene) -> Hit:
    """Tickets that never arrive."""
    model, jobs = await _line(scene)
    stolen = await _steal(scene, model)
    return Hit(f"{len(stolen)} of {queue_of(model)}", time.monotonic(), jobs)


async def ticket_late(scene: Scene) -> Hit:
    """Tickets that arrive when they have been replaced."""
    model, jobs = await _line(scene)
    stolen = await _steal(scene, model)
    at = time.monotonic()
    await asyncio.sleep(scene.rng.uniform(0.5, 3.0))
    await _push(scene, model, stolen)
    return Hit(f"{len(stolen)} of {queue_of(model)}", at, jobs)


async def ticket_foreign(scene: Scene) -> Hit:
    """Tickets of another model in a model's line: the other one's real ones, or of a model that nobody knows."""
    model, jobs = await _line(scene)
    others = sorted({member.model for member in scene.house.workers} - {model})
    at = time.monotonic()
    if others:
        foreign = await _steal(scene, model)
        await _push(scene, scene.rng.choice(others), foreign)
    else:
        await scene.store.lpush(queue_of(model), _forge("nobody"))
    return Hit(queue_of(model), at, jobs)


async def supervisor_kill(scene: Scene) -> Hit:
    """SIGKILL of `penstock up`: it takes its children along, and the next one goes on with their jobs."""
    wing, jobs = await scene.supervisor()
    with scene.grip(wing):
        pid, children = wing.pid, children_of(wing.pid or 0)
        if pid is None or not children:
            raise Missed("the supervisor has no children")
        wing.held, at = True, time.monotonic()
        wing.signal(signal.SIGKILL)
        await ended(wing, pid, 5.0)
        gone = await until(lambda: not any(map(parent_of, children)), ORPHANS_S + NOTICE_S - (time.monotonic() - at))
        left = [child for child in children if parent_of(child)]
    return Hit(wing.name, at, jobs, "" if gone else f"{len(left)} children outlived it by {ORPHANS_S} s")


async def preempt(scene: Scene) -> Hit:
    """Running jobs are put back into line in mid-sentence."""
    store = JobStore(scene.store, load_settings(redis_url=scene.house.redis_url))
    running = await scene.running()
    chosen = scene.rng.sample(running, min(len(running), scene.rng.randint(1, 4)))
    at, preempted = time.monotonic(), []
    with suppress(StoreDown):
        for job in chosen:
            if await store.preempt(job) == "preempted":
                preempted.append(job)
    if not preempted:
        raise Missed("nothing ran any more")
    return Hit(f"{len(preempted)} jobs", at, tuple(preempted))


async def _end_api(scene: Scene, number: signal.Signals) -> Hit:
    jobs = await scene.running()
    member = await scene.api()
    with scene.grip(member):
        pid, at = member.pid, time.monotonic()
        member.signal(number)
        if await ended(member, pid, STOP_S):
            return Hit(member.name, at, jobs)
        member.signal(signal.SIGKILL)
        return Hit(member.name, at, jobs, f"it still ran {STOP_S:.0f} s after {number.name}")


async def _line(scene: Scene) -> tuple[str, tuple[str, ...]]:
    """The line to strike: a model with workers that serve."""
    await scene.server()
    members: list[Member] = [member for member in scene.house.workers if member.fit]
    if not members:
        raise Missed("no line moves")
    return scene.rng.choice(sorted({member.model for member in members})), await scene.running()


async def _steal(scene: Scene, model: str) -> list[str]:
    """One to three tickets, popped as a worker would pop them."""
    stolen: list[str] = []
    for _ in range(scene.rng.randint(1, 3)):
        popped = await scene.store.brpop([queue_of(model)], timeout=STEAL_S)
        if popped is None:
            break
        stolen.append(popped[1])
    if not stolen:
        raise Missed("no ticket came by")
    return stolen


async def _push(scene: Scene, model: str, tickets: list[str]) -> None:
    """Into the line, unless Redis is away; then they are lost."""
    with suppress(RedisError, OSError):
        await scene.store.lpush(queue_of(model), *tickets)


def _forge(model: str) -> str:
    """A ticket as the store makes them, which stands for no job."""
    ticket = ticket_template().replace("@TASK@", f"chaos-{uuid.uuid4()}").replace("@MODEL@", model)
    json.loads(ticket)
    return ticket
