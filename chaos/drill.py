"""One run from beginning to end: a house, a crowd of clients, a calm, a storm, quiet, and the judgement."""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]

from api.closing import end as end_tasks
from chaos import prompts
from chaos.audit import Finding
from chaos.auditor import Auditor
from chaos.circumstances import RECOVERY_S, Sky, Struck
from chaos.crowd import Crowd
from chaos.faults import ALWAYS, FAULTS
from chaos.house import DEMO, FAKE, House, Plan, until
from chaos.members import children_of
from chaos.quiet import KEYED, Level, fallen, level, nothing_left, strangers
from chaos.report import Run, Tally
from chaos.storm import Storm
from chaos.wire import Wire

#: New findings that are told at once.
SAID = 10
#: Beyond the lease, until a reaper has come by, on a busy machine.
LAPSE_S = 4.0


@dataclass(frozen=True)
class Bounds:
    """Seconds to wait for a stuck client, a job that never ends, a member that does not come back, and for quiet."""

    crowd: float = 300.0
    jobs: float = 120.0
    settle: float = 90.0
    quiet: float = 60.0


#: A job that Redis was made to forget the end of runs again, all 4000 tokens of the longest, behind all the others.
LOSSY_JOBS_S = 240.0

#: Kept long enough for the audit, and no longer: Redis reads all of it at every restart.
KEEP_S = {"PENSTOCK_RETENTION_S": "300", "PENSTOCK_RETENTION_STREAM_S": "180"}


@dataclass(frozen=True)
class Drill:
    """What is to be run. `calm_s` is without faults, at the beginning; `late_s`: how long after its client the job is
    looked at. `plan` is about the processes, `mix` about the kinds of clients.
    `until_red`: the first finding ends it."""

    plan: Plan
    seed: int
    minutes: float
    command: str = "python -m chaos"
    kinds: tuple[str, ...] = ALWAYS
    clients: int = 64
    pause_s: tuple[float, float] = (0.5, 4.0)
    poison_every_s: float = 90.0
    calm_s: float = 15.0
    late_s: float = 25.0
    mix: Mapping[str, int] | None = None
    bounds: Bounds = field(default_factory=Bounds)
    until_red: bool = False

    @property
    def lossy(self) -> bool:
        """Whether Redis may lose writes in this run."""
        return self.plan.appendfsync != "always" or self.plan.replica


class Scenery:
    """The parts of one run, once the house stands."""

    def __init__(self, drill: Drill, house: House, wire: Wire, demo: list[prompts.Ask]) -> None:
        self.drill = drill
        self.house = house
        self.begun = time.monotonic()
        self.tally = Tally()
        self.storm = Storm(house, _dice(drill, "storm"), drill.kinds, drill.pause_s)
        self.auditor = Auditor(house.store(), self.sky, self.tally, drill.late_s)
        self.crowd = Crowd(
            wire,
            _dice(drill, "clients"),
            self.auditor.through,
            size=drill.clients,
            demo=demo,
            poison_every_s=drill.poison_every_s,
            mix=drill.mix,
        )
        self.before: Level = reduce(or_, (level(pid, _port(house)) for pid in api_pids(house)))

    def sky(self) -> Sky:
        """Everything that struck so far."""
        urls = {member.name: member.url for member in self.house.members() if member.url}
        if self.house.wing:
            urls[f"all of {FAKE}"] = self.house.wing.url  # the wing is one of them
        struck: list[Struck] = [*self.storm.struck, *self.crowd.poisoned]
        single = frozenset({DEMO} if self.drill.plan.demos == 1 else ())
        drill, plan = self.drill, self.drill.plan
        bounds = {"worker_kill": plan.lease_s + RECOVERY_S}
        bounds["step_hang"] = bounds["worker_kill"] + plan.step_timeout_s
        return Sky(struck, self.begun + drill.calm_s, drill.lossy, urls, single, plan.lease_s + LAPSE_S, bounds)

    async def play(self) -> None:
        """Clients and faults, until the last client is through."""
        end = self.begun + self.drill.minutes * 60
        crowd = asyncio.create_task(self.crowd.run(end))
        try:
            await asyncio.sleep(self.drill.calm_s)
            if self.drill.kinds:
                await self.storm.run(end)
            await asyncio.wait([crowd], timeout=max(0.0, end - time.monotonic()) + self.drill.bounds.crowd)
            for account in list(self.crowd.running):
                self.tally.findings.append(Finding("lost", account.job, f"its {account.kind} client hangs"))
            if crowd.done():
                crowd.result()
        finally:
            await end_tasks(crowd)

    async def play_until_red(self) -> None:
        """The same, until there is a finding that makes it red."""
        play = asyncio.create_task(self.play())
        await until(lambda: play.done() or list(self.result().broken()), math.inf, 0.5)
        if play.done():
            play.result()
        await end_tasks(play)

    async def judge(self) -> None:
        """When all is healed: what is left to audit, and what was left behind."""
        house, findings = self.house, self.tally.findings
        if not await house.settle(self.drill.bounds.settle):
            findings.append(Finding("troubles", "", f"they did not come back: {house.unwell()}"))
        await self.auditor.finish(self.drill.bounds.jobs)
        findings += [Finding("troubles", "", f"{one.kind}: {one.trouble}") for one in self.storm.struck if one.trouble]
        findings += [Finding("troubles", "", text) for text in fallen(list(house.members()))]
        pids = api_pids(house)
        findings += await nothing_left(
            house.store(), pids, len(pids), _port(house), self.before, self.drill.bounds.quiet
        )
        unknown = await strangers(house.store(), self.tally.known)
        if len(unknown) > self.tally.unanswered:
            text = f"{len(unknown)} jobs that no client knows, after {self.tally.unanswered} submits without an answer"
            findings.append(Finding("duplicated", "", f"{text}: {', '.join(unknown[:5])}"))
        findings += [Finding("duplicated", "", f"a second job {one}") for one in unknown if KEYED in one]

    def result(self) -> Run:
        """For the report."""
        drill = self.drill
        kinds = {kind: FAULTS[kind].on_worker for kind in drill.kinds}
        if drill.poison_every_s:
            kinds["poison"] = False
        return Run(
            drill.command,
            drill.seed,
            drill.minutes,
            drill.plan.lease_s,
            drill.plan.step_timeout_s,
            drill.plan.appendfsync + (", failovers to a replica" if drill.plan.replica else ""),
            self.tally,
            [*self.storm.struck, *self.crowd.poisoned],
            kinds,
            self.storm.missed,
            self.crowd.bugs,
            drill.lossy,
        )


async def run(drill: Drill, say: Callable[[str], None] = lambda line: None) -> Run:
    """Run it. Raises what stopped the house."""
    demo = await asyncio.to_thread(prompts.ask_demo_elsewhere) if drill.plan.demos else []
    say(f"starting the house in {drill.plan.folder}")
    async with House(drill.plan, _dice(drill, "house")) as house, Wire(house.urls, _dice(drill, "wire")) as wire:
        scenery = Scenery(drill, house, wire, demo)
        async with _meanwhile(scenery, say):
            await (scenery.play_until_red() if drill.until_red else scenery.play())
        if drill.until_red and list(scenery.result().broken()):
            return scenery.result()
        say("the storm is over")
        (drill.plan.folder / "storm.txt").write_text(scenery.storm.timeline(scenery.begun))
        await scenery.judge()
        found = "".join(f"{one.column}: {one.job} {one.text}\n" for one in scenery.tally.findings)
        (drill.plan.folder / "findings.txt").write_text(found)
        return scenery.result()


@asynccontextmanager
async def _meanwhile(scenery: Scenery, say: Callable[[str], None]) -> AsyncIterator[None]:
    """What runs beside: the audit, the house's keeper, a line now and then."""
    tasks = [
        asyncio.create_task(each) for each in (scenery.auditor.run(), scenery.house.keep(), _narrate(scenery, say))
    ]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await end_tasks(*tasks)


async def _narrate(scenery: Scenery, say: Callable[[str], None]) -> None:
    told = 0
    while True:
        await asyncio.sleep(20.0)
        tally = scenery.tally
        say(
            f"{time.monotonic() - scenery.begun:6.0f} s: {tally.jobs} jobs judged, {len(scenery.crowd.running)} clients, "
            f"{len(scenery.storm.struck)} faults, findings {dict(tally.counts()) or 'none'}"
        )
        for one in tally.findings[told : told + SAID]:
            say(f"         {one.column}: {one.job} {one.text}")
        told = len(tally.findings)


def api_pids(house: House) -> list[int]:
    """All processes that serve HTTP, the wing's, too."""
    pids = [member.pid for member in house.apis if member.pid]
    for child in children_of(house.wing.pid) if house.wing and house.wing.pid else ():
        if "api" in psutil.Process(child).cmdline():
            pids.append(child)
    return pids


def _port(house: House) -> int:
    return urlsplit(house.redis_url).port or 0


def _dice(drill: Drill, who: str) -> random.Random:
    """One stream of numbers a part, so that none changes another's."""
    return random.Random(f"{drill.seed} {who}")


def say_aloud(line: str) -> None:
    """To the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
