"""The clients as a crowd: so many at once, each drawn anew when the last one is through, until the time is over."""

from __future__ import annotations

import asyncio
import math
import random
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chaos.client import Client, GaveUp
from chaos.clients import KINDS
from chaos.prompts import PLAIN, Ask, FakeAsks
from chaos.record import Account
from chaos.wire import Wire

#: Of hundred clients. Poisoned jobs are not drawn but come at their own pace: each one kills workers.
MIX = {"stream": 28, "stored": 21, "events": 16, "poll": 11, "whole": 8, "cancel": 8, "disconnect": 6, "slow": 2}
DEMO_SHARE = 0.12


@dataclass
class Poisoned:
    """A poisoned job as a fault: it strikes from its submit to its end. Has what a `chaos.storm.Struck` has."""

    at: float
    until: float = math.inf
    kind: str = "poison"
    target: str = ""
    busy: bool = True
    jobs: tuple[str, ...] = ()


class Crowd:
    """`through` gets every account once its client is through, accepted or not."""

    def __init__(
        self,
        wire: Wire,
        rng: random.Random,
        through: Callable[[Account], None],
        *,
        size: int,
        demo: Sequence[Ask] = (),
        poison_every_s: float = 0.0,
        mix: Mapping[str, int] | None = None,
    ) -> None:
        self._wire = wire
        self._rng = rng
        self._through = through
        self._size = size
        self._demo = demo
        self._mix = MIX if mix is None else mix
        self._poison_every_s = poison_every_s
        self._asks = FakeAsks(rng)
        self.running: set[Account] = set()
        self.poisoned: list[Poisoned] = []
        self.bugs: list[str] = []

    async def run(self, until: float) -> None:
        """Draw clients until then (monotonic time), and wait for the last one."""
        poisoners = [self._poison(until)] if self._poison_every_s else []
        await asyncio.gather(*(self._one_after_the_other(number, until) for number in range(self._size)), *poisoners)

    async def _one_after_the_other(self, number: int, until: float) -> None:
        await asyncio.sleep(number * 0.05)
        kinds, weights = list(self._mix), list(self._mix.values())
        while time.monotonic() < until:
            kind = self._rng.choices(kinds, weights)[0]
            await self._play(kind, self._draw(kind))

    async def _poison(self, until: float) -> None:
        """One at a time, so that the workers that it kills are its own."""
        while time.monotonic() + self._poison_every_s / 2 < until:
            due = time.monotonic() + self._poison_every_s
            await asyncio.sleep(self._poison_every_s / 2)
            self.poisoned.append(Poisoned(time.monotonic()))
            await self._play("poison", self._asks.poison(self._rng.choice((0, 0, 3, 12))))
            self.poisoned[-1].until = time.monotonic()
            await asyncio.sleep(min(due, until) - time.monotonic())

    def _draw(self, kind: str) -> Ask:
        if kind == "disconnect":
            return self._asks.endless()
        if kind == "slow":
            return self._asks.wide()
        if self._demo and self._rng.random() < DEMO_SHARE and kind != "cancel":
            return self._rng.choice(self._demo)
        if kind == "cancel":  # only one without an end shows for certain whether it was cancelled
            return self._asks.endless() if self._rng.random() < 0.5 else self._asks.draw(PLAIN)
        return self._asks.draw(chat=kind == "stored")

    async def _play(self, kind: str, ask: Ask) -> None:
        account = Account(kind, ask)
        self.running.add(account)
        try:
            await KINDS[kind](Client(self._wire, self._rng, account))
        except GaveUp:
            account.outcome = account.outcome or "gave up"
        except Exception:
            account.outcome = "bug"  # ours, or an answer that makes no sense: either must be looked at
            self.bugs.append(f"{kind} {account.job}: {traceback.format_exc()}")
        finally:
            account.over = time.monotonic()
            self.running.discard(account)
            self._through(account)
