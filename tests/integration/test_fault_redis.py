"""A Redis that cuts connections, falls silent, is full, or is killed: streams go on, and what was accepted is kept."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import uvloop

from chaos.front import Front
from tasks.connections import close_broken, connect_async
from tasks.errors import StoreDown, StoreRefused
from tasks.jobs import JobState
from tasks.keys import key
from tasks.settings import Settings
from tasks.store import JobStore
from tests.integration.line_rig import Line, chat_body, whole_line
from tests.integration.protocol_rig import Rig
from tests.integration.worker_rig import expected
from tests.own_redis import OwnRedis, own_redis
from tests.processes import wait_until

TEXT = "Count from 1 to 80. [step_ms=20]"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path) as made:
        yield made


def clients(store: redis.Redis, name: str) -> list[str]:
    """The ids of the connections of this name."""
    found: Any = store.client_list()
    return [client["id"] for client in found if client["name"] == name]


def ended_as_if_nothing_was(line: Line, *chats: Any) -> None:
    for chat in chats:
        assert chat.until_over().check().over == "done"
        assert chat.text == expected(TEXT)
        (record,) = line.rig.until_over(chat.job)
        assert (record.attempt, record.losses) == (1, 0)


@pytest.mark.parametrize("why", ["full", "a replica", "without its replica"])
def test_a_redis_that_takes_no_writes_refuses_no_single_job(server: OwnRedis, why: str) -> None:
    """A job that is refused alone is let go of; one that is refused with all others must wait."""
    rig = Rig(server.url)
    attempt = rig.running()
    if why == "full":
        rig.redis.config_set("maxmemory", 1)
    elif why == "a replica":
        rig.redis.replicaof("127.0.0.1", "1")
    else:
        rig.redis.config_set("min-replicas-to-write", 1)
    for call in (attempt.make(1).send, attempt.renew, attempt.release):
        with pytest.raises(StoreDown) as caught:
            call()
        assert type(caught.value) is StoreDown, caught.value
    with pytest.raises(StoreDown):
        rig.submit()
    rig.redis.config_set("maxmemory", 0)
    rig.redis.config_set("min-replicas-to-write", 0)
    rig.redis.replicaof("no", "one")
    assert attempt.send() == "ok"
    assert attempt.renew().verdict == "ok"
    rig.close()


def test_a_corrupt_record_refuses_its_own_job_only(server: OwnRedis) -> None:
    rig = Rig(server.url)
    attempt = rig.running()
    rig.redis.set(key("job", attempt.job), "no hash")
    with pytest.raises(StoreRefused):
        attempt.make(1).send()
    rig.close()


def test_a_connection_that_was_cut_while_idle_fails_no_call(server: OwnRedis) -> None:
    """Its pool notices; neither a request nor a step has to pay for it."""
    rig = Rig(server.url)
    for _ in range(3):
        rig.wait(rig.store.ping())
        rig.ledger.reap()
        for name in ("penstock-api", "penstock-worker"):
            for client in clients(rig.redis, name):
                rig.redis.client_kill_filter(_id=client)
        rig.wait(asyncio.sleep(0.05))  # as a server's loop does: it hears of the cut
    rig.wait(rig.store.ping())
    rig.ledger.reap()
    rig.close()


@pytest.mark.parametrize("cut", ["closed", "reset"])
def test_idle_connections_that_were_cut_are_closed_and_never_raise_what_nobody_expects(
    server: OwnRedis, cut: str
) -> None:
    """On the event loop that the API has: after a burst a pool holds many, and hands out only the last one."""
    front = Front(server.port)

    async def play() -> None:
        client = connect_async(front.url, "test")
        store = JobStore(client, Settings())
        try:
            await asyncio.gather(*(store.ping() for _ in range(12)))
            before = open_sockets()
            front.reset() if cut == "reset" else front.point(server.port)
            await asyncio.sleep(0.1)
            if cut == "reset":
                with pytest.raises(StoreDown):
                    await store.ping()
            await close_broken(client)
            await store.ping()
            assert open_sockets() <= before - 8
        finally:
            await client.aclose()

    try:
        uvloop.run(play())
    finally:
        front.close()


def open_sockets() -> int:
    """Of this process, in whatever state."""
    return sum(name.startswith("socket:") for name in map(fd_name, Path("/proc/self/fd").iterdir()))


def fd_name(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@pytest.mark.parametrize("name", ["penstock-celery", "penstock-worker", "penstock-api", "penstock-relay"])
def test_every_kind_of_connection_may_be_cut(tmp_path: Path, redis_url: str, name: str) -> None:
    """Again and again, in mid-stream. Whoever was cut comes back under the same name."""
    with whole_line(tmp_path, redis_url) as line:
        worker = line.rig.start()
        chats = [line.chat(TEXT) for _ in range(2)]
        for characters in (20, 60, 100):
            for chat in chats:
                chat.until(characters)
            cut = wait_until(lambda: clients(line.rig.redis, name), f"a connection called {name}")
            for client in cut:
                line.rig.redis.client_kill_filter(_id=client)
        ended_as_if_nothing_was(line, *chats)
        assert line.chat("Count from 1 to 5.").until_over().text == "1, 2, 3, 4, 5"
        wait_until(lambda: clients(line.rig.redis, name), "a new connection")
        assert not set(clients(line.rig.redis, name)) & set(cut)
        assert worker.process.poll() is None


def test_a_silent_redis_costs_a_pause_longer_than_itself_by_little(tmp_path: Path, server: OwnRedis) -> None:
    """Longer than three leases and than any call waits, so calls fail and are sent again. Nobody loses a lease."""
    with whole_line(tmp_path, server.url) as line:
        line.rig.start()
        chats = [line.chat(TEXT).until(20) for _ in range(2)]
        server.hang()
        time.sleep(6.5)
        server.go_on()
        heard = [len(chat.text) for chat in chats]
        began = time.monotonic()
        for chat, characters in zip(chats, heard, strict=True):
            chat.until(characters + 1)
        assert time.monotonic() - began < 4
        ended_as_if_nothing_was(line, *chats)


def test_a_full_redis_refuses_jobs_and_holds_streams_up(tmp_path: Path, server: OwnRedis) -> None:
    """For longer than a lease. A refusal leaves nothing behind; what runs goes on when there is room again."""
    with whole_line(tmp_path, server.url) as line, redis.Redis.from_url(server.url) as client:
        worker = line.rig.start()
        chats = [line.chat(TEXT).until(20) for _ in range(3)]
        keys = set(client.keys("penstock:job:*"))
        client.config_set("maxmemory", 1)
        for path, body in (("/v1/jobs", chat_body("hi")), ("/v1/chat/completions", chat_body("hi", stream=True))):
            refused = httpx.post(line.url + path, json=body, timeout=20)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert refused.headers["retry-after"]
        time.sleep(3)
        assert set(client.keys("penstock:job:*")) == keys
        assert not any(chat.over for chat in chats)
        client.config_set("maxmemory", 0)
        ended_as_if_nothing_was(line, *chats)
        assert worker.process.poll() is None
        assert line.chat("Count from 1 to 5.").until_over().text == "1, 2, 3, 4, 5"


def test_a_full_redis_does_not_hold_a_drain(tmp_path: Path, server: OwnRedis) -> None:
    """Jobs cannot be given back then: they lapse, and go on when there is room again."""
    with whole_line(tmp_path, server.url) as line, redis.Redis.from_url(server.url) as client:
        worker = line.rig.start()
        chat = line.chat(TEXT).until(20)
        client.config_set("maxmemory", 1)
        worker.process.terminate()
        assert worker.wait(8) == 0
        client.config_set("maxmemory", 0)
        line.rig.start()
        assert chat.until_over().check().text == expected(TEXT)


class Submitting(threading.Thread):
    """A client that submits as fast as it can, and keeps what was accepted."""

    def __init__(self, line: Line) -> None:
        super().__init__(daemon=True)
        self.accepted: list[str] = []
        self.refused: list[int] = []
        self.broken: list[str] = []
        self.done = threading.Event()
        self._url = line.url

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as http:
            while not self.done.is_set():
                try:
                    answer = http.post("/v1/jobs", json=chat_body("Count from 1 to 5."))
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                    continue
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["id"])
                else:
                    self.refused.append(answer.status_code)
                    self.done.wait(0.02)


def test_with_appendfsync_always_a_killed_redis_has_all_that_was_accepted(tmp_path: Path, server: OwnRedis) -> None:
    """Kills under load: each accepted job is there afterwards and ends, each event that a client saw stays seen."""
    with whole_line(tmp_path, server.url) as line:
        line.rig.start()
        chats = [line.chat(TEXT) for _ in range(2)]
        submitting = Submitting(line)
        submitting.start()
        for number in (1, 2, 3):
            accepted = len(submitting.accepted)
            for chat in chats:
                chat.until(30 * number)
            wait_until(lambda least=accepted + 5: len(submitting.accepted) >= least, "accepted jobs")  # type: ignore[misc]
            server.kill()
            seen = list(submitting.accepted)
            server.start()
            line.rig.reconnect()
            for job in seen:
                assert line.rig.job(job).id == job
        submitting.done.set()
        submitting.join(10)
        assert set(submitting.refused) <= {429, 503}
        assert not submitting.broken
        for chat in chats:
            assert chat.until_over().check().over == "done"
            assert chat.text == expected(TEXT)
        for job in submitting.accepted:
            wait_until(lambda one=job: line.rig.job(one).state.terminal, "the end of an accepted job", 30)  # type: ignore[misc]
            line.rig.check(job)
            assert (line.rig.job(job).state, line.rig.text(job)) == (JobState.SUCCEEDED, "1, 2, 3, 4, 5")
