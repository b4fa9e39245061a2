"""Readers get exactly the log, whatever breaks: channels killed, queues overflowing, clients leaving and coming back."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import redis

import api.reader
from api.reader import Item
from api.relay import Relay
from tasks.events import START
from tasks.keys import key, single
from tests.api_server import ScriptedWorker
from tests.integration.relay_rig import make_spec, read_count, relays, running
from tests.processes import wait_until


async def test_thirty_readers_get_exactly_the_log(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks on purpose: five kills a second, queues of twenty entries, readers that leave, dawdle and come back."""
    monkeypatch.setattr(api.reader, "QUEUE", 20)
    monkeypatch.setattr(api.reader, "PAGE", 37)
    dice = random.Random(7)
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url, 2) as (store, made):
        specs = [make_spec() for _ in range(6)]
        for spec in specs:
            await store.submit(spec, limit=100)
        writing = asyncio.create_task(asyncio.to_thread(write_all, worker, len(specs), 300))
        killing = asyncio.create_task(asyncio.to_thread(kill_channels, redis_url, 4.0))
        seen = await asyncio.gather(
            *(read_with_breaks(dice.choice(made), specs[i % 6].id, random.Random(i)) for i in range(30))
        )
        await writing
        await killing
        logs = {spec.id: await store.read_all(spec.id) for spec in specs}
    for i, items in enumerate(seen):
        assert items == logs[specs[i % 6].id], f"reader {i}"
    worker.close()


def write_all(worker: ScriptedWorker, jobs: int, entries: int) -> None:
    """Write all jobs side by side; now and then one goes back into line and gets a new fence."""
    dice = random.Random(3)
    running = [worker.claim() for _ in range(jobs)]
    written = [0] * jobs
    while any(written[i] < entries for i in range(jobs)):
        for i in range(jobs):
            if written[i] < entries:
                count = dice.randint(1, 4)
                assert running[i].say(*(f"{written[i] + k} " for k in range(count))) == "ok"
                written[i] += count
                if dice.random() < 0.02:
                    running[i].give_back()
                    running[i] = worker.claim()
        time.sleep(0.005)
    for attempt in running:
        attempt.end()


def kill_channels(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < until:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            time.sleep(0.2)


async def read_with_breaks(relay: Relay, job_id: str, dice: random.Random) -> list[Item]:
    items: list[Item] = []
    while True:
        reader = relay.open(job_id, items[-1][0] if items else START)
        try:
            await reader.attach()
            for _ in range(dice.randint(1, 60)):
                items += await reader.next(0.5)
                if reader.ended:
                    return items
                if dice.random() < 0.1:
                    await asyncio.sleep(dice.random() * 0.1)
        finally:
            relay.leave(reader, 30)
        await asyncio.sleep(dice.random() * 0.05)


async def test_a_lost_end_is_found_when_idle(redis_url: str) -> None:
    """The terminal entry's message never arrives; the idle look into the log finds it."""
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url) as (store, [relay]):
        spec = make_spec()
        reader = relay.open(spec.id, START)
        await store.submit(spec, limit=10, api=relay.api)
        attempt = worker.claim()
        attempt.say("a")
        assert [at.seq for at, _ in await read_count(reader.next, 2)] == [1, 2]
        with redis.Redis.from_url(redis_url) as client:
            client.delete(key("watch", spec.id))  # from now on nothing is published to this process
        attempt.end()
        begun = time.monotonic()
        assert [at.seq for at, _ in await read_count(reader.next, 1)] == [3]
        assert 1.0 < time.monotonic() - begun < 3.5
        assert reader.ended
        relay.leave(reader, 0)
    worker.close()


async def test_a_reconnect_looks_into_the_logs(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published while the channel was away comes at once, not only when the reader has been idle."""
    monkeypatch.setattr(api.reader, "IDLE_S", 60.0)
    async with running(redis_url, 1) as (relay, reader, _, attempt, client):
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        attempt.say("meanwhile")
        assert [at.seq for at, _ in await read_count(reader.next, 1)] == [3]
        relay.leave(reader, 0)


async def test_a_reconnect_lets_go_of_what_nobody_reads(redis_url: str) -> None:
    """A Redis that lost its last second may have lost a detach; the channel always breaks with it."""
    async with running(redis_url, 1) as (relay, reader, _, attempt, client):
        stray = make_spec(store=False)
        await relay._store.submit(stray, limit=10, api=relay.api)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        watches = key("watch", stray.id)
        await asyncio.to_thread(wait_until, lambda: not client.exists(watches), "the detach", 5.0)
        assert client.zscore(single("orphans"), stray.id)
        assert client.smembers(key("watched", relay.api)) == {attempt.spec.id}  # and of nothing else
        await asyncio.to_thread(
            wait_until, lambda: set(relay._watches) == {attempt.spec.id}, "the end of the watch", 5.0
        )
        relay.leave(reader, 0)


async def test_the_last_reader_to_leave_cancels(redis_url: str) -> None:
    """Two readers of a job that is not stored: nothing happens when the first goes, all when the second does."""
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url) as (store, [relay]):
        spec = make_spec(store=False)
        first, second = (relay.open(spec.id, START) for _ in range(2))
        await store.submit(spec, limit=10, api=relay.api)
        await second.attach()
        attempt = worker.claim()
        relay.leave(first, 0)
        await asyncio.sleep(0.1)
        assert attempt.renew() == "ok"
        relay.leave(second, 0)
        await asyncio.to_thread(wait_until, lambda: attempt.renew() == "cancel", "the cancel", 5.0)
        await asyncio.to_thread(wait_until, lambda: not relay._watches, "the end of the watch", 5.0)
    worker.close()


async def test_leaving_and_coming_back_at_once_does_not_cancel_for_good(redis_url: str) -> None:
    """Attach and detach of one job never overtake each other, and one that is back was never away."""
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url) as (store, [relay]):
        spec = make_spec(store=False)
        reader = relay.open(spec.id, START)
        await store.submit(spec, limit=10, api=relay.api)
        attempt = worker.claim()
        for _ in range(200):
            relay.leave(reader, 0)
            reader = relay.open(spec.id, START)
            await reader.attach()
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            assert client.smembers(key("watch", spec.id)) == {relay.api}
            assert client.zcard("penstock:orphans") == 0
        assert attempt.renew() == "ok"
        relay.leave(reader, 0)
    worker.close()


@pytest.mark.parametrize(
    "noise", ["no json", "7", '[["JOB", [["1-9", {"k": "of a later version"}]]]]', '[["JOB", [["x", {}]]]]']
)
async def test_a_message_that_makes_no_sense_does_not_stop_the_relay(redis_url: str, noise: str) -> None:
    """As of a newer worker: the log decides, and what comes afterwards is still relayed."""
    async with running(redis_url, 1) as (relay, reader, _, attempt, client):
        channel = key("relay", relay.api)
        client.publish(channel, noise.replace("JOB", reader.job_id))
        await asyncio.sleep(0.5)
        assert client.pubsub_numsub(channel) == [(channel, 1)]
        attempt.say("on")
        assert [at.seq for at, _ in await read_count(reader.next, 1)] == [3]
        relay.leave(reader, 0)
