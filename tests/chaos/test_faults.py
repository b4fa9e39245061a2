"""Every kind of fault, once, against a small house under load: it happens, and the house is well afterwards.

The kinds that take long run with CHAOS=1 only; `make chaos` draws all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio

from chaos.faults import ALWAYS, FAULTS
from chaos.house import FAKE, House, Plan, until
from chaos.record import TERMINAL
from chaos.storm import Storm
from tests.integration.worker_rig import expected

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = {
    *("worker_kill", "worker_kill_before_claim", "step_error", "step_oom", "step_slow", "worker_drain"),
    *("redis_kill", "kill_broker", "kill_writer", "kill_commands", "kill_subscription", "api_stop"),
    *("ticket_double", "ticket_lost", "preempt", "supervisor_kill"),
}
ALL = os.environ.get("CHAOS") == "1"
TEXT = "[tokens=120] [step_ms=15]"


class Load:
    """Keeps some jobs running, and remembers every answer that was not right."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._http = httpx.AsyncClient(timeout=3.0, trust_env=False)
        self.done = 0
        self.wrong: list[str] = []

    async def run(self, clients: int) -> None:
        """Until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(self._ask_again())
        finally:
            await self._http.aclose()

    async def one(self, text: str) -> None:
        """One job from the submit to its end."""
        body = {"model": FAKE, "messages": [{"role": "user", "content": text}], "temperature": 0}
        accepted = await self._insist("POST", "/v1/jobs", 202, body)
        job = accepted
        while job["state"] not in TERMINAL:
            await asyncio.sleep(0.1)
            job = await self._insist("GET", f"/v1/jobs/{accepted['id']}", 200)
        self.done += 1
        if (job["state"], job["output_text"]) != ("succeeded", expected(text)):
            self.wrong.append(f"{job['id']} {job['state']}: {job['output_text']!r}")

    async def _ask_again(self) -> None:
        while True:
            await self.one(TEXT)

    async def _insist(self, method: str, path: str, status: int, body: object = None) -> dict[str, object]:
        """Any API that gives this answer."""
        while True:
            for url in self._house.urls():
                with suppress(httpx.HTTPError):
                    answer = await self._http.request(method, url + path, json=body)
                    if answer.status_code == status:
                        found: dict[str, object] = answer.json()
                        return found
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Two API processes, two workers, a wing, and leases of a second."""
    plan = Plan(tmp_path_factory.mktemp("house"), lease_s=1.0, step_timeout_s=2.0, lanes=4, redis_pause_s=4.0)
    async with House(plan, random.Random(1)) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def load(house: House) -> AsyncIterator[Load]:
    """Six clients, for as long as the house stands."""
    made = Load(house)
    task = asyncio.create_task(made.run(6))
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def storm(house: House) -> Storm:
    """A storm that strikes when told."""
    return Storm(house, random.Random(7), ALWAYS, (0.0, 0.1))


@pytest.mark.parametrize("kind", [kind for kind in ALWAYS if ALL or kind in QUICK])
async def test_the_fault_happens_and_what_it_must_not_break_holds(kind: str, storm: Storm, load: Load) -> None:
    for _ in range(3):  # a worker that had just gone idle is no target
        async with asyncio.timeout(60):
            struck = await storm.strike(kind)
        if struck is not None:
            break
    assert struck is not None
    assert struck.trouble == ""
    assert struck.at <= struck.until
    if FAULTS[kind].on_worker:
        assert struck.busy
    before = load.done
    assert await until(lambda: load.done > before, 30), "no job came to its end any more"


async def test_afterwards_the_house_is_well_and_every_answer_was_right(house: House, load: Load) -> None:
    assert await house.settle(30), house.unwell()
    assert not any(member.struck for member in house.members())
    async with asyncio.timeout(30):
        await load.one("Count from 1 to 20.")
    assert load.wrong == []
    assert load.done > len(QUICK)
