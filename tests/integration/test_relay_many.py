"""Many readers: places in line for all at once, frames encoded once for all, and every stream exact."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
import redis

import api.reader
import api.sse
from api.chunks import ChatChunks
from api.closing import Closing
from api.sse import Narrator
from tasks.catalog import ModelEntry
from tasks.connections import connect
from tasks.events import START
from tasks.keys import key
from tasks.ledger import JobLedger
from tests.api_server import HELLO, MODEL, ApiLine, ScriptedWorker, chat_body, serve, settings_of
from tests.integration.relay_rig import make_spec, read_count, relays, running
from tests.processes import wait_until


def calls(client: redis.Redis, *commands: str) -> int:
    stats = client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{command}", {}).get("calls", 0)) for command in commands)


async def test_readers_in_line_ask_redis_together(redis_url: str) -> None:
    """One call a second for the places of all of them, and nothing else; they follow the line."""
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url) as (store, [relay]):
        specs = [make_spec() for _ in range(50)]
        readers = [relay.open(spec.id, START) for spec in specs]
        for reader, spec in zip(readers, specs, strict=True):
            reader.position = (await store.submit(spec, limit=100, api=relay.api)).position
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            waits = [asyncio.create_task(reader.next(20)) for reader in readers]
            client.config_resetstat()
            await asyncio.sleep(3.2)
            assert calls(client, "evalsha", "eval") <= 4
            assert calls(client, "xrange") == 0
            worker.claim()
            assert [at.seq for at, _ in await waits[0]] == [1]
            assert await asyncio.gather(*waits[1:]) == [[]] * 49  # long before: woken by their new places
        assert [reader.position for reader in readers] == [None, *range(1, 50)]
        for reader in readers:
            relay.leave(reader, 0)
    worker.close()


async def test_one_that_left_the_line_unheard_looks_into_its_log_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was published to this process; the next look at the line finds it out."""
    monkeypatch.setattr(api.reader, "IDLE_S", 60.0)
    worker = ScriptedWorker(redis_url)
    async with relays(redis_url) as (store, [relay]):
        spec = make_spec()
        reader = relay.open(spec.id, START)
        reader.position = (await store.submit(spec, limit=100, api=relay.api)).position
        with redis.Redis.from_url(redis_url) as client:
            client.delete(key("watch", spec.id))
            worker.claim().say("a", "b")
            begun = time.monotonic()
            assert [at.seq for at, _ in await read_count(reader.next, 3)] == [1, 2, 3]
            assert time.monotonic() - begun < 2.5
            assert client.sismember(key("watch", spec.id), relay.api)
        relay.leave(reader, 0)
    worker.close()


class Counting(ChatChunks):
    """Counts what it encodes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.encoded = 0

    def frames(self, *args: object) -> bytes:  # type: ignore[override]
        self.encoded += 1
        return super().frames(*args)  # type: ignore[arg-type]


def narrator_of(reader: object, render: ChatChunks) -> Narrator:
    return Narrator(reader, render, lambda position: None, 10.0, Closing())  # type: ignore[arg-type]


async def test_readers_of_a_job_share_what_is_encoded(redis_url: str) -> None:
    async with running(redis_url, 0) as (relay, first, _, attempt, _):
        readers = [first, *(relay.open(first.job_id, first.last) for _ in range(4))]
        for reader in readers[1:]:
            await reader.attach()
            await reader.next(0.1)
        renders = [Counting(attempt.spec, 1) for _ in readers]
        said: list[list[bytes]] = [[] for _ in readers]

        def keep(into: list[bytes]) -> api.sse.Say:
            async def say(data: bytes) -> None:
                into.append(data)

            return say

        telling = [
            asyncio.create_task(narrator_of(reader, render).narrate(keep(into)))
            for reader, render, into in zip(readers, renders, said, strict=True)
        ]
        for number in range(20):
            await asyncio.to_thread(attempt.say, f"{number} ")
        await asyncio.to_thread(attempt.end)
        await asyncio.gather(*telling)
        assert all(b"".join(each) == b"".join(said[0]) for each in said)
        assert sum(render.encoded for render in renders) <= 20 + 5 + 5  # each token once, each end for itself
        for reader in readers:
            relay.leave(reader, 0)


async def test_one_that_is_behind_gets_tokens_together_and_all_of_them(redis_url: str) -> None:
    async with running(redis_url, 0) as (relay, reader, _, attempt, _):
        data: list[bytes] = []
        blocked = asyncio.Event()

        async def say(piece: bytes) -> None:
            data.append(piece)
            await blocked.wait()

        telling = asyncio.create_task(narrator_of(reader, ChatChunks(attempt.spec, 1, True)).narrate(say))
        await asyncio.to_thread(attempt.say, "0 ")
        for number in range(1, 200):
            await asyncio.to_thread(attempt.say, f"{number} ")
        await asyncio.sleep(2 * api.reader.BEHIND_S)
        blocked.set()
        await asyncio.to_thread(attempt.end)
        await telling
        rows = [json.loads(line[6:]) for line in b"".join(data).split(b"\n") if line.startswith(b"data: {")]
        assert "".join(row["choices"][0]["delta"].get("content", "") for row in rows) == "".join(
            f"{number} " for number in range(200)
        )
        assert len(rows) < 20
        relay.leave(reader, 0)


async def test_five_hundred_streams_are_exact(redis_url: str) -> None:
    """By HTTP, all open at once: every one has a text of its own, in order, each token once."""
    count, tokens = 500, 12
    worker = ScriptedWorker(redis_url).appear()
    worker.ledger.close()
    settings = settings_of(redis_url, lease_s=60.0)
    worker.ledger = JobLedger(connect(redis_url, "scripted"), settings)  # nothing is renewed
    entry = ModelEntry(name=MODEL, engine="fake", max_waiting=count)

    def write_all() -> None:
        attempts = [worker.claim() for _ in range(count)]
        for at in range(0, tokens, 3):
            for i, attempt in enumerate(attempts):
                assert attempt.say(*(f"{i}.{number} " for number in range(at, at + 3))) == "ok"
        for attempt in attempts:
            attempt.end()

    with serve(settings, entry) as url:
        writing = asyncio.create_task(asyncio.to_thread(write_all))
        seen = await asyncio.gather(*(streamed(int(url.rpartition(":")[2])) for _ in range(count)))
        await writing
    assert sorted(seen) == sorted("".join(f"{i}.{number} " for number in range(tokens)) for i in range(count))
    worker.close()


async def streamed(port: int) -> str:
    """One chat's text."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    body = json.dumps(chat_body(stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    data = await asyncio.wait_for(reader.readuntil(b"data: [DONE]"), 60)
    writer.close()
    rows = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    return "".join(row["choices"][0]["delta"].get("content", "") for row in rows)


def test_a_client_that_takes_nothing_is_let_go_of(line: ApiLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is cancelled once a piece has waited for too long; others are served meanwhile."""
    monkeypatch.setattr(api.sse, "SEND_TIMEOUT_S", 0.5)
    body = json.dumps(chat_body(stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(line.url.rpartition(":")[2])))
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        attempt = line.worker.claim()
        wait_until(lambda: attempt.say("w" * 100_000) == "cancel", "the cancel", 20)
        thread = line.later("fine")
        assert line.sdk.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content == "fine"
        thread.join()
