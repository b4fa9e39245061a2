"""What faults have in common: whom to strike, how to heal, and what the fault itself has seen.

A fault always heals what it did, however it ends: `grip` wakes, releases and hands back the member. A fault that finds
nothing to strike raises `Missed`, and does not count.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from chaos.house import House, Member, until
from tasks.keys import key

#: How long a fault looks for a busy target, and waits until an order is obeyed.
PATIENCE_S = 5.0


class Missed(Exception):
    """The fault did not happen."""


@dataclass
class Hit:
    """What a fault did. `at`: the moment of the blow; `jobs`: those that the target was running; `trouble`: a promise
    that the fault itself saw broken, or nothing."""

    target: str
    at: float
    jobs: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Owner:
    """Who had a job, and how often it had lost one."""

    state: str
    fence: int
    losses: int


class Scene:
    """The house as faults see it, with the dice."""

    def __init__(self, house: House, rng: random.Random) -> None:
        self.house = house
        self.rng = rng

    @property
    def store(self) -> Any:
        """The harness' own connection."""
        return self.house.store()

    @contextmanager
    def grip(self, *members: Member) -> Iterator[None]:
        """These members are ours; afterwards they run, whatever was done to them, and are anybody's."""
        for member in members:
            member.struck = True
        try:
            yield
        finally:
            for member in members:
                member.signal(signal.SIGCONT)
                member.held = member.struck = False

    async def worker(self) -> tuple[Member, tuple[str, ...]]:
        """A worker to strike, a busy one if there is any within a while, and the jobs that it runs."""
        return await self._choose(self.house.workers)

    async def supervisor(self) -> tuple[Member, tuple[str, ...]]:
        """The wing, preferably with a busy worker."""
        return await self._choose([self.house.wing] if self.house.wing else [])

    async def _choose(self, members: Sequence[Member]) -> tuple[Member, tuple[str, ...]]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            jobs = await self.house.jobs()
            fit = [member for member in members if member.fit]
            busy = [member for member in fit if jobs.get(member.name)]
            if busy:
                chosen = self.rng.choice(busy)
                return chosen, jobs[chosen.name]
            if time.monotonic() > deadline:
                if not fit:
                    raise Missed("nobody to strike")
                return self.rng.choice(fit), ()
            await asyncio.sleep(0.05)

    async def api(self) -> Member:
        """An API process to strike, while another one serves."""

        def spare() -> list[Member]:
            fit = [member for member in self.house.apis if member.fit]
            return fit if len(self.house.urls()) > 1 else []

        if not await until(spare, PATIENCE_S):
            raise Missed("no API process to spare")
        return self.rng.choice(spare())

    async def server(self) -> Member:
        """The Redis server, if no other fault is at it."""
        if not await until(lambda: self.house.redis.fit, PATIENCE_S):
            raise Missed("Redis is not fit")
        return self.house.redis

    async def all_jobs(self) -> dict[str, tuple[str, ...]]:
        """The jobs that living workers run, by member; nothing if Redis does not say."""
        try:
            return await self.house.jobs()
        except (RedisError, OSError):
            return {}

    async def also(self, jobs: Sequence[str], *pids: int | None) -> tuple[str, ...]:
        """These, and those that the processes claimed between the look at their jobs and the blow."""
        try:
            late = await self.house.jobs_by_pid()
        except (RedisError, OSError):
            late = {}
        return tuple(dict.fromkeys([*jobs, *(job for pid in pids for job in late.get(pid or 0, ()))]))

    async def running(self) -> tuple[str, ...]:
        """Every job that a living worker runs."""
        return tuple(job for jobs in (await self.all_jobs()).values() for job in jobs)

    async def owners(self, jobs: Sequence[str]) -> dict[str, Owner]:
        """Who has these jobs now; nothing if Redis does not say. So a fault that was struck is recorded in any case."""
        pipe = self.store.pipeline(transaction=False)
        for job in jobs:
            pipe.hmget(key("job", job), "state", "fence", "losses")
        try:
            rows = await pipe.execute() if jobs else []
        except (RedisError, OSError):
            return {}
        return {
            job: Owner(state, int(fence or 0), int(losses or 0))
            for job, (state, fence, losses) in zip(jobs, rows, strict=True)
            if state
        }


async def ended(member: Member, pid: int | None, seconds: float) -> bool:
    """Wait until this process of the member has ended; it may be running again by then."""
    return await until(lambda: member.pid != pid, seconds)
