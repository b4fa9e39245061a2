"""The house: every process of a Penstock under fire, started, watched, started again, and ended.

One Redis with an append-only file, several API processes, workers of two models, and a wing: one `penstock up` at the
same Redis. The harness' own connection is called "chaos", so that no fault takes it for one of Penstock's. Every wait is
bounded, and nothing outlives this process, not even after a SIGKILL (see `chaos.members`). Faults are `chaos.faults`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.closing import end as end_tasks
from chaos.aof import AppendOnlyFile
from chaos.members import Member, connect_aside, free_port, parent_of
from chaos.pair import Pair
from chaos.plan import DEMO, FAKE, Furnisher, Members, Plan
from chaos.saboteur import Orders
from cli.processes import Watcher
from tasks.keys import key, single
from tasks.profile import WorkerCard

__all__ = ["DEMO", "FAKE", "House", "Member", "Plan", "until"]

TICK_S, LOOK_S = 0.03, 0.2
START_S, END_S, REDIS_END_S = 120.0, 8.0, 5.0


class House:
    """Use as an async context manager: entering returns when all members serve, leaving ends them all."""

    def __init__(self, plan: Plan, rng: random.Random | None = None) -> None:
        self.plan = plan
        self.rng = rng or random.Random()
        self.folder = plan.folder.resolve()
        self.aof = AppendOnlyFile(self.folder / "redis")
        self._port = free_port(self.rng)
        self.redis_url = f"redis://127.0.0.1:{self._port}/0"
        self._store = connect_aside(self.redis_url)
        self._serving: set[int] = set()  # the processes of workers that say that they are ready
        self._keepers: list[asyncio.Task[None]] = []
        self._members: Members | None = None

    async def __aenter__(self) -> House:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._watcher = Watcher()
        try:
            self._members = Furnisher(self.plan, self.folder, self._port, self._watcher, self.rng).make()
            self._keepers = [asyncio.create_task(self._tend()), asyncio.create_task(self._look())]
            if not await self.settle(START_S):
                raise TimeoutError(f"not all members serve after {START_S:.0f} s: {self.unwell()}; see {self.folder}")
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    @property
    def redis(self) -> Member:
        """The server that is written to."""
        return self._all().redis

    @property
    def pair(self) -> Pair | None:
        """It and its replica, if it has one."""
        return self._all().pair

    @property
    def apis(self) -> list[Member]:
        """The API processes but the wing's."""
        return self._all().apis

    @property
    def workers(self) -> list[Member]:
        """The workers but the wing's."""
        return self._all().workers

    @property
    def wing(self) -> Member | None:
        """The `penstock up`, if there is one. Its `url` is that of its API."""
        return self._all().wing

    def members(self) -> Iterator[Member]:
        """All of them."""
        return iter(self._all())

    def store(self) -> Redis:
        """The harness' own connections, which no fault kills."""
        return self._store

    def urls(self) -> list[str]:
        """The APIs that should be reachable."""
        return [m.url for m in self.members() if m.url and m.alive and m.ready and not m.held]

    def orders(self, member: Member) -> Orders:
        """Where the saboteur in this member's process looks."""
        return Orders(self.folder / "orders", member.pid or 0)

    def unwell(self) -> list[str]:
        """Those that do not serve now."""
        return [repr(member) for member in self.members() if not member.alive or not member.ready or member.held]

    async def keep(self) -> None:
        """Runs as long as the house keeps its members alive, which it does by itself. Raises what stopped it."""
        for stopped in (await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED))[0]:
            stopped.result()

    async def settle(self, seconds: float) -> bool:
        """Wait until every member serves. False: the time was too short. Raises what stopped the house."""
        await until(lambda: not self.unwell() or any(task.done() for task in self._keepers), seconds)
        if any(task.done() for task in self._keepers):
            await self.keep()
        return not self.unwell()

    async def cards(self) -> list[WorkerCard]:
        """The workers that were heard of lately."""
        client: Any = self._store
        names = await client.zrange(single("workers"), 0, -1)
        texts = await client.mget([key("worker", name) for name in names]) if names else []
        return [WorkerCard.from_json(text) for text in texts if text]

    async def jobs(self) -> dict[str, tuple[str, ...]]:
        """The running jobs, by the name of the member that runs them; the wing's are the wing's. Strangers' are left
        out: jobs of a process that is dead already."""
        found: dict[str, tuple[str, ...]] = {}
        for pid, jobs in (await self.jobs_by_pid()).items():
            if home := self._home(pid):
                found[home] = found.get(home, ()) + jobs
        return found

    async def jobs_by_pid(self) -> dict[int, tuple[str, ...]]:
        """The running jobs, by the process that has their leases; it may be dead."""
        client: Any = self._store
        ids = await client.zrange(single("leases"), 0, -1)
        pipe = client.pipeline(transaction=False)
        for job in ids:
            pipe.hget(key("job", job), "worker")
        owners = await pipe.execute() if ids else []
        pids = {card.name: card.pid for card in await self.cards()}
        found: dict[int, tuple[str, ...]] = {}
        for job, owner in zip(ids, owners, strict=True):
            if owner in pids:
                found[pids[owner]] = (*found.get(pids[owner], ()), job)
        return found

    def _home(self, pid: int) -> str:
        """The member that a worker's process belongs to."""
        for member in self.workers:
            if member.pid == pid:
                return member.name
        return self.wing.name if self.wing and self.wing.pid == parent_of(pid) else ""

    def _all(self) -> Members:
        if self._members is None:
            raise RuntimeError("the house is not entered")
        return self._members

    async def _tend(self) -> None:
        """Start what is due. The others wait for the first start of Redis, which `penstock up` insists on."""
        opened = False
        while True:
            self.redis.tend(self.rng)
            opened = opened or self.redis.ready
            for member in self.members():
                if opened and member is not self.redis:
                    member.tend(self.rng)
            self.aof.sample()
            await asyncio.sleep(TICK_S)

    async def _look(self) -> None:
        """Notice which members have begun to serve."""
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as http:
            while True:
                await asyncio.sleep(LOOK_S)
                self.redis.ready = self.redis.alive and await self._answers()
                if self.pair:
                    await self.pair.look()
                if self.redis.ready:
                    with suppress(RedisError, OSError):
                        self._serving = {card.pid for card in await self.cards() if card.state == "ready"}
                for worker in self.workers:
                    worker.ready = worker.ready or worker.pid in self._serving
                await asyncio.gather(*(self._look_at_api(http, member) for member in self.members() if member.url))

    async def _answers(self) -> bool:
        client: Any = self._store
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False

    async def _look_at_api(self, http: httpx.AsyncClient, member: Member) -> None:
        """One that served goes on serving until it ends; the wing serves when its worker does, too."""
        pid = member.pid
        if member.ready or pid is None:
            return
        with suppress(httpx.HTTPError):
            answer = await http.get(member.url + "/healthz")
            complete = member is not self.wing or pid in map(parent_of, self._serving)
            member.ready = answer.status_code == 200 and complete and member.pid == pid

    async def _leave(self) -> None:
        await end_tasks(*self._keepers)
        if self._members is not None:
            await _end([member for member in self.members() if member.kind != "redis"], END_S)
            await _end([member for member in self.members() if member.kind == "redis"], REDIS_END_S)
            if self.pair:
                await self.pair.close()
        self._watcher.close()
        await self._store.aclose()


async def until(look: Callable[[], object], seconds: float, every_s: float = 0.02) -> bool:
    """Wait until `look` is true. False: the time was too short."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)
    return True


async def _end(members: list[Member], seconds: float) -> None:
    """Ask them to end, then kill those that are late."""
    for member in members:
        member.end()
    await until(lambda: not [member for member in members if not member.gone()], seconds)
    for member in members:
        member.kill()
    await until(lambda: not [member for member in members if not member.gone()], 5.0)
