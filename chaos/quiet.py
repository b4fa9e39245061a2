"""After the storm: is anything left behind? Jobs, leases, keys without TTL, sequences, subscriptions, open files."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from redis.exceptions import RedisError

from chaos.audit import Finding
from chaos.members import Member
from tasks.keys import FAMILIES, PERMANENT, SINGLES, key, single
from tasks.profile import WorkerCard

#: Kombu's own: bindings of the queues.
FOREIGN = "_kombu.binding"
#: What one API process may have more open than it had before the first client came.
SPARE_FILES = 4
#: In a log, these mean that a process gave up.
FATAL = ("Unrecoverable error", "thread failed", "engine is dead")
APIS = single("apis")
KEYED = "by the key"
CLIENT = "a connection of a client"
INTERNET = (socket.AF_INET, socket.AF_INET6)


Level = Counter[str]


def level(pid: int, redis_port: int) -> Level:
    """What a process has open now, by kind; connections to Redis are left out: their number follows the load."""
    process = psutil.Process(pid)
    sockets = {one.fd: one for one in process.net_connections("all")}
    found: Level = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        peer = sockets.get(int(link.name))
        if peer is not None and peer.raddr:
            if getattr(peer.raddr, "port", 0) != redis_port:
                found[CLIENT if peer.family in INTERNET else "a pipe of its own"] += 1
        elif peer is not None:
            found[f"socket {peer.status}"] += 1
        else:
            with suppress(OSError):  # closed in this moment
                found[_about_file(os.readlink(link))] += 1
    return found


def _about_file(name: str) -> str:
    return "log" if name.endswith(".log") else re.sub(r"\d+", "n", name)


async def nothing_left(
    store: Any, pids: Sequence[int], apis: int, redis_port: int, before: Level, seconds: float
) -> list[Finding]:
    """Everything that is still there when nothing runs any more; waits so many seconds until it is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = await _left(store, apis)
        except (RedisError, OSError) as error:
            found = [f"Redis does not answer: {error}"]
        found += _open(pids, redis_port, before)
        if not found or time.monotonic() > deadline:
            return [Finding("leaks", "", text) for text in found]
        await asyncio.sleep(1.0)


async def _left(store: Any, apis: int) -> list[str]:
    found = [text for name in await _names(store) if (text := await _about(store, name))]
    for card in await _cards(store):
        if card.running or card.kv_used:
            found.append(f"{card.name} runs {card.running} jobs, {card.kv_used:.0%} of its cache is taken")
    channels = await store.pubsub_channels(key("relay", "*"))
    counts = [count for _, count in await store.pubsub_numsub(*channels)] if channels else []
    if counts != [1] * apis:
        found.append(f"the relay channels have {counts} subscriptions, for {apis} API processes")
    names = [client["name"] for client in await store.client_list()]
    for what, count in (("relay connections", names.count("penstock-relay")), ("APIs", await store.zcard(APIS))):
        if count != apis:
            found.append(f"{count} {what} for {apis} API processes")
    return found


async def _about(store: Any, name: str) -> str:
    """What is wrong with a key: it will stay for ever, or speaks of a job that has not ended.

    Leases, lines, orphans, deadlines, tickets and what is watched are empty when nothing runs: then there is no key.
    """
    if name.startswith(FOREIGN) or _permanent(name):
        return ""
    kind = await store.type(name)
    if kind == "hash" and name.startswith(FAMILIES["job"]):
        state = await store.hget(name, "state")
        if state in ("queued", "running"):
            return f"{name} is still {state}"
    return f"{name} ({kind}) has no TTL" if await store.ttl(name) == -1 else ""


def _permanent(name: str) -> bool:
    return any(
        name == SINGLES.get(each) or (each in FAMILIES and name.startswith(FAMILIES[each])) for each in PERMANENT
    )


async def _names(store: Any) -> list[str]:
    return [name async for name in store.scan_iter(count=500)]


async def _cards(store: Any) -> list[WorkerCard]:
    names = await store.zrange(single("workers"), 0, -1)
    texts = await store.mget([key("worker", name) for name in names]) if names else []
    return [WorkerCard.from_json(text) for text in texts if text]


def _open(pids: Sequence[int], redis_port: int, before: Level) -> list[str]:
    found = []
    for pid in pids:
        now = level(pid, redis_port)
        if now[CLIENT]:
            found.append(f"API process {pid} has {now[CLIENT]} connections of clients that are gone")
        elif now.total() > before.total() + SPARE_FILES:
            more = ", ".join(f"{count} more {kind}" for kind, count in (now - before).items())
            found.append(f"API process {pid} has more open than when nobody had come yet: {more}")
    return found


async def strangers(store: Any, known: set[str]) -> list[str]:
    """Jobs in the store that no client knows of: their submits were never answered. By id, with their state, and the
    idempotency key if there is one; then there must be none, since its client tried until it was answered."""
    found = []
    async for name in store.scan_iter(match=FAMILIES["job"] + "*", count=500):
        job = name[len(FAMILIES["job"]) :]
        if job not in known:
            state, idem = await store.hmget(name, "state", "idem")
            found.append(f"{job} {state}" + (f" {KEYED} {idem}" if idem else ""))
    return found


def fallen(members: Sequence[Member]) -> list[str]:
    """Members that ended though nobody had a hand in it; those of the wing say so in its log."""
    found = [f"{member.name} ended by itself: {how}" for member in members for how in member.fell]
    for member in members:
        text = member.log.read_text(errors="replace") if member.log.exists() else ""
        found += [f"{member.name}: {line[:200]}" for line in text.splitlines() if any(word in line for word in FATAL)]
    return found
