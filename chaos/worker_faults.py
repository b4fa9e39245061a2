"""What can befall a worker: death, sleep, failing and hanging steps, a drain, the loss of all of them."""

from __future__ import annotations

import asyncio
import signal
import time

from chaos.house import FAKE, Member, until
from chaos.scene import PATIENCE_S, Hit, Missed, Owner, Scene, ended

#: What a worker may take to give everything back, and the harness to notice.
DRAIN_S, NOTICE_S = 5.0, 0.5


async def worker_kill(scene: Scene) -> Hit:
    """SIGKILL."""
    member, jobs = await scene.worker()
    with scene.grip(member):
        pid, at = member.pid, time.monotonic()
        member.signal(signal.SIGKILL)
        await ended(member, pid, PATIENCE_S)
        jobs = await scene.also(jobs, pid)
    return Hit(member.name, at, jobs)


async def worker_zombie(scene: Scene) -> Hit:
    """SIGSTOP for longer than the lease: when it wakes its jobs are others', and it does not know."""
    member, jobs = await scene.worker()
    with scene.grip(member):
        at = time.monotonic()
        member.signal(signal.SIGSTOP)
        jobs = await scene.also(jobs, member.pid)
        await asyncio.sleep(scene.house.plan.lease_s * scene.rng.uniform(1.1, 2.2) + 0.3)
    return Hit(member.name, at, jobs)


async def worker_kill_before_claim(scene: Scene) -> Hit:
    """SIGKILL between the pop of a ticket and the claim of a job."""
    member, jobs, pid = await _order(scene, "die-before-claim")
    at = time.monotonic()
    with scene.grip(member):
        trouble = "" if await ended(member, pid, PATIENCE_S) else "the saboteur did not kill its process"
    return Hit(member.name, at, jobs, trouble)


async def step_error(scene: Scene) -> Hit:
    """A step raises."""
    return await _failing_step(scene, "raise")


async def step_oom(scene: Scene) -> Hit:
    """A step runs out of memory, its tokens lost."""
    return await _failing_step(scene, "oom")


async def step_hang(scene: Scene) -> Hit:
    """A step that never returns: the process gives up by itself after the step timeout."""
    timeout = scene.house.plan.step_timeout_s
    member, jobs, pid = await _order(scene, "hang", "3600")
    at = time.monotonic()
    with scene.grip(member):
        if await ended(member, pid, timeout + DRAIN_S):
            return Hit(member.name, at, jobs)
        member.signal(signal.SIGKILL)
        return Hit(member.name, at, jobs, f"it still hung {timeout + DRAIN_S:.0f} s later")


async def step_slow(scene: Scene) -> Hit:
    """A step longer than the lease, but not than the step timeout: nobody may lose a job by it."""
    plan = scene.house.plan
    seconds = scene.rng.uniform(plan.lease_s * 1.1, max(plan.lease_s * 1.2, plan.step_timeout_s * 0.8))
    seconds = min(seconds, plan.step_timeout_s * 0.9)
    member, jobs, pid = await _order(scene, "slow", f"{seconds:.3f}")
    at, before = time.monotonic(), await scene.owners(jobs)
    with scene.grip(member):
        await asyncio.sleep(seconds)
        after = await scene.owners(jobs)
        trouble = _lost(before, after) if member.pid == pid else _suicide(member)
    return Hit(member.name, at, jobs, trouble)


async def worker_drain(scene: Scene) -> Hit:
    """SIGTERM: gone within five seconds whatever runs, its jobs given back and not left to lapse."""
    member, jobs = await scene.worker()
    with scene.grip(member):
        pid, at = member.pid, time.monotonic()
        before = await scene.owners(jobs)
        member.signal(signal.SIGTERM)
        if not await ended(member, pid, DRAIN_S + NOTICE_S):
            member.signal(signal.SIGKILL)
            return Hit(member.name, at, jobs, f"it had not drained {DRAIN_S + NOTICE_S} s after SIGTERM")
        after = await scene.owners(jobs)
    kept = [job for job, owner in after.items() if owner.state == "running" and owner == before.get(job)]
    drained = member.last_end == "exit code 0"  # else a poisoned job was quicker
    return Hit(member.name, at, jobs, f"{len(kept)} jobs were not given back" if kept and drained else "")


async def workers_gone(scene: Scene) -> Hit:
    """All workers of a model are killed and stay away for a while."""
    house = scene.house
    model = scene.rng.choice(sorted({member.model for member in house.workers}))
    gone = [member for member in house.workers if member.model == model]
    gone += [house.wing] if house.wing and model == FAKE else []
    if not await until(lambda: all(member.fit for member in gone), PATIENCE_S):
        raise Missed("another fault is at one of them")
    jobs = await house.jobs()
    with scene.grip(*gone):
        at, pids = time.monotonic(), [member.pid for member in gone]
        for member in gone:
            member.held = True
            member.signal(signal.SIGKILL)
        hit = await scene.also([job for member in gone for job in jobs.get(member.name, ())], *pids)
        await asyncio.sleep(scene.rng.uniform(2.0, 6.0))
    return Hit(f"all of {model}", at, hit)


async def _failing_step(scene: Scene, order: str) -> Hit:
    member, jobs, pid = await _order(scene, order)
    at = time.monotonic()
    with scene.grip(member):
        await asyncio.sleep(0.3)
        return Hit(member.name, at, jobs, "" if member.pid == pid else _suicide(member))


async def _order(scene: Scene, order: str, text: str = "") -> tuple[Member, tuple[str, ...], int | None]:
    """Have the saboteur in a worker do it, and wait until it does; a worker that went idle meanwhile is let go."""
    member, jobs = await scene.worker()
    with scene.grip(member):
        pid, orders = member.pid, scene.house.orders(member)
        orders.give(order, text)
        await until(lambda: orders.obeyed(order) or member.pid != pid, PATIENCE_S)
        if orders.withdraw(order):
            raise Missed(f"{member.name} had nothing to do")
        now = (await scene.all_jobs()).get(member.name) if member.pid == pid else None
        return member, now or jobs, pid  # it was at work, even if its last job ended just before


def _suicide(member: Member) -> str:
    """A process that should have lived on ended by itself. A SIGKILL is a poisoned job's doing."""
    return f"the process ended: {member.last_end}" if member.last_end.startswith("exit") else ""


def _lost(before: dict[str, Owner], after: dict[str, Owner]) -> str:
    """A promise that these jobs would keep their owner, or end with it."""
    kept = {job: owner.fence for job, owner in before.items() if owner.state == "running"}
    lost = [job for job, owner in after.items() if kept.get(job, owner.fence) != owner.fence]
    return f"{len(lost)} jobs lost their lease: {', '.join(lost[:3])}" if lost else ""
