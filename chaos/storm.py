"""Draws faults from a seed and strikes: every kind in turn, in shuffled rounds, one alone or two at once; now and then
one in stillness, so that it can be measured how long the jobs that it hit take to go on.

The record of what happened is the storm's own. A fault that found nothing to strike comes again at the end of its round,
a few times; then it is named in `missed`, for the report to complain of. `run` returns when all that it did is healed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Sequence

from redis.exceptions import RedisError

from api.closing import end as end_tasks
from chaos.circumstances import LATE_S, RECOVERY_S
from chaos.faults import FAULTS, Missed, Scene, Struck
from chaos.house import House
from chaos.house import until as wait_until

__all__ = ["Storm", "Struck"]

#: How many faults come before the one before them is healed.
MIXED = 0.25
#: How often a fault is tried in one round.
TRIES = 4
AFTERMATH_S = 1.0
#: Kinds whose recovery has a bound; how often they strike in stillness, and how long the house may take to be still.
BOUNDED = ("worker_kill", "step_hang")
STILL, SETTLE_S = 0.6, 30.0
#: No fault takes longer to heal, but for a Redis that reads a long file.
BOUND_S = 120.0


class Storm:
    """Strikes a house. `struck` is in the order of the blows' ends."""

    def __init__(self, house: House, rng: random.Random, kinds: Sequence[str], pause_s: tuple[float, float]) -> None:
        self.struck: list[Struck] = []
        self.missed: Counter[str] = Counter()
        self._house = house
        self._scene = Scene(house, rng)
        self._rng = rng
        self._kinds = list(kinds)
        self._pause_s = pause_s
        self._round: deque[tuple[str, int]] = deque()
        self._under_way: dict[object, float] = {}
        self._last_healed = self._aftermath_until = 0.0

    async def run(self, until: float) -> None:
        """Strike until that moment (`time.monotonic`), and heal."""
        blows: list[asyncio.Task[None]] = []
        try:  # no TaskGroup: it cancels once, and redis-py may lose that
            while time.monotonic() < until:
                kind, tries = self._next()
                still = kind in BOUNDED and self._rng.random() < STILL
                if still:
                    await self._stillness()
                blows = [blow for blow in blows if not blow.done() or blow.result()]
                blows.append(asyncio.create_task(self._try(kind, tries)))
                if still or self._rng.random() >= MIXED or len(self._under_way) > 1:
                    await blows[-1]
                if still:
                    await asyncio.sleep(self._house.plan.lease_s + RECOVERY_S + LATE_S)
                await asyncio.sleep(min(self._rng.uniform(*self._pause_s), max(0.0, until - time.monotonic())))
            await asyncio.gather(*blows)
        finally:
            await end_tasks(*blows)

    async def _stillness(self) -> None:
        """Until every fault is healed, every member serves, and the jobs that were hit have had time to go on."""
        await wait_until(lambda: not self._under_way, BOUND_S)
        await self._house.settle(SETTLE_S)
        await asyncio.sleep(self._house.plan.lease_s + LATE_S)

    async def strike(self, kind: str) -> Struck | None:
        """Strike once, now, and heal. None: there was nothing to strike."""
        token, began = object(), time.monotonic()
        mixed = bool(self._under_way) or began < self._aftermath_until
        self._under_way[token] = began
        try:
            async with asyncio.timeout(BOUND_S + self._house.plan.redis_pause_s):
                hit = await FAULTS[kind].strike(self._scene)
        except (Missed, RedisError, OSError):
            return None
        finally:
            del self._under_way[token]
        healed = time.monotonic()
        if FAULTS[kind].takes_leases:  # what lapses by it may be found out only by the next reaping
            self._aftermath_until = healed + AFTERMATH_S
        mixed = mixed or bool(self._under_way) or self._last_healed > began
        self._last_healed = healed
        blow = Struck(kind, hit.at, healed, hit.target, bool(hit.jobs), hit.jobs, mixed, "" if mixed else hit.trouble)
        self.struck.append(blow)
        return blow

    def timeline(self, begun: float) -> str:
        """What struck when, for whoever looks for the cause of a finding."""
        return "".join(
            f"{one.at - begun:8.2f} to {one.until - begun:8.2f} s {one.kind} {one.target} {len(one.jobs)} jobs"
            f"{' ' + one.trouble if one.trouble else ''}\n"
            for one in self.struck
        )

    def _next(self) -> tuple[str, int]:
        if not self._round:
            kinds = list(self._kinds)
            self._rng.shuffle(kinds)
            self._round.extend((kind, 1) for kind in kinds)
        return self._round.popleft()

    async def _try(self, kind: str, tries: int) -> None:
        if await self.strike(kind) is None:
            self.missed[kind] += 1
            if tries < TRIES:
                self._round.append((kind, tries + 1))
