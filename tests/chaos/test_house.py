"""The house itself: nothing outlives it, however it ends; the planted bugs fit the code that they break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import redis

from chaos import breaks
from chaos.aof import AppendOnlyFile
from chaos.members import ROOT, children_of, parent_of
from chaos.saboteur import Orders
from tasks import lua
from tests.processes import wait_until

HOUSE = """
import asyncio, pathlib, sys
from chaos.house import House, Plan

async def main():
    async with House(Plan(pathlib.Path(sys.argv[1]), apis=1, fakes=1)) as house:
        print(*(member.pid for member in house.members()), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_harness_takes_the_house_along(tmp_path: Path) -> None:
    harness = subprocess.Popen(
        [sys.executable, "-c", HOUSE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert harness.stdout is not None
        pids = [int(word) for word in harness.stdout.readline().split()]
        assert len(pids) == 4
        grandchildren = [child for pid in pids for child in children_of(pid)]
        assert len(grandchildren) >= 2  # the wing's API and worker
        os.kill(pids[2], signal.SIGSTOP)  # not even one that sleeps
        harness.kill()
        wait_until(lambda: not any(map(parent_of, [*pids, *grandchildren])), "the end of all", 5.0)
    finally:
        harness.kill()
        harness.communicate(timeout=10)


def test_every_planted_bug_fits_the_code(redis_url: str) -> None:
    breaks.check()
    with redis.Redis.from_url(redis_url) as client:
        for row in breaks.BREAKS.values():
            if "." not in row.place:
                source = breaks.broken_scripts([row])
                changed = [name for name in lua.NAMES if source(name) != lua.source(name)]
                assert changed
                for name in changed:
                    client.script_load(source(name))  # it still compiles: it fails for want of the guard only


def test_an_order_is_obeyed_once_or_withdrawn(tmp_path: Path) -> None:
    orders = Orders(tmp_path, 1)
    assert orders.take("slow") is None
    orders.give("slow", "1.5")
    assert not orders.obeyed("slow")
    assert orders.take("slow") == "1.5"
    assert orders.take("slow") is None
    assert orders.obeyed("slow")
    assert not orders.withdraw("slow")
    orders.give("slow")
    assert not orders.obeyed("slow")
    assert orders.withdraw("slow")
    assert orders.take("slow") is None


def test_a_power_cut_takes_only_what_was_not_yet_on_disk(tmp_path: Path) -> None:
    now = 100.0
    file = AppendOnlyFile(tmp_path, lambda: now)
    file.sample()
    assert file.cut() == 0  # there is none
    (tmp_path / "appendonly.aof").write_bytes(b"x" * 100)
    file.sample()
    assert file.cut() == 0  # all of it is new: nothing says what was synced
    now += 1.5
    (tmp_path / "appendonly.aof").write_bytes(b"x" * 150)
    file.sample()
    assert file.cut() == 50
    assert (tmp_path / "appendonly.aof").stat().st_size == 100
