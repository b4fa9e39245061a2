"""A small world for tests of the job protocol: one real Redis, an API process, a worker process, and ways to break them.

Time is moved by editing the scores that the scripts compare with Redis' clock, so no test sleeps for a lease to expire.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar, cast

import redis

from tasks.connections import connect, connect_async
from tasks.events import EntryId
from tasks.jobs import JobSpec, new_id
from tasks.keys import FAMILIES, PERMANENT, PREFIX, SINGLES, key, queue_of, single
from tasks.ledger import Claim, JobLedger
from tasks.sampling import Sampling
from tasks.settings import Settings
from tasks.store import JobStore, Submitted
from tasks.tenants import EVERYBODY, Tenant
from tests.integration.protocol_attempt import Attempt

MODEL = "demo"
Snapshot = dict[str, tuple[bytes, int]]
T = TypeVar("T")


class Heard(NamedTuple):
    """One entry as a relay channel carried it."""

    api: str
    job: str
    id: EntryId
    entry: dict[str, Any]


def make_spec(**fields: Any) -> JobSpec:
    """A small chat job."""
    defaults: dict[str, Any] = {"id": new_id("chat"), "kind": "chat", "model": MODEL, "prompts": ((1, 2),)}
    return JobSpec(**(defaults | {"sampling": Sampling(max_tokens=8, seed=1)} | fields))


class Ear:
    """A relay's subscription. `heard` returns what arrived since the last call, and never waits for what will not come."""

    def __init__(self, client: redis.Redis, *apis: str) -> None:
        self._client = client
        self._pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe("mark", *(key("relay", api) for api in apis))
        self._marks = 0
        self.heard()

    def heard(self) -> list[Heard]:
        """Everything published before this call."""
        self._marks += 1
        self._client.publish("mark", str(self._marks))
        found: list[Heard] = []
        while True:
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
            if message is None:
                continue  # a confirmation; the mark is still on its way
            if message["channel"] == "mark":
                if message["data"] == str(self._marks):
                    return found
                continue
            api = message["channel"].removeprefix(key("relay", ""))
            for job, entries in json.loads(message["data"]):
                found += [Heard(api, job, EntryId.parse(name), entry) for name, entry in entries]

    def close(self) -> None:
        """End the subscription."""
        self._pubsub.close()


class Rig:
    """The world. `store` is an API process, `ledger` a worker process, `redis` whoever looks or tampers."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.redis = connect(url, "test")
        self.raw = redis.Redis.from_url(url)  # values as bytes, for copies
        self.ledger = JobLedger(connect(url, "worker"), self.settings)
        self._runner = asyncio.Runner()
        self.store = JobStore(connect_async(url, "api"), self.settings)
        self._ears: list[Ear] = []
        self.reap()  # so that the first one that a test means is no reap after an outage

    def close(self) -> None:
        """Close every connection."""
        for ear in self._ears:
            ear.close()
        self.wait(self.store.close())
        self._runner.close()
        self.ledger.close()
        self.redis.close()
        self.raw.close()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self._runner.run(call)

    def submit(
        self,
        *,
        limit: int = 100,
        token_limit: int = 0,
        by: Tenant = EVERYBODY,
        listed: bool = False,
        api: str = "",
        idem: str = "",
        body: str = "-",
        **fields: Any,
    ) -> Submitted:
        """Submit a small job; `fields` go into its spec."""
        spec = make_spec(**{"tenant": by.name, **fields})
        limits = {"limit": limit, "token_limit": token_limit, "tenant": by}
        call = self.store.submit(spec, **limits, listed=listed, api=api, idempotency_key=idem, body_hash=body)  # type: ignore[arg-type]
        return self.wait(call)

    def new(self, **options: Any) -> str:
        """The id of a fresh job."""
        return self.submit(**options).id

    def claim(self, worker: str = "w1", model: str = MODEL) -> Claim:
        """Claim, and expect a job."""
        claim = self.ledger.claim(model, worker)
        assert isinstance(claim, Claim)
        return claim

    def attempt(self, worker: str = "w1") -> Attempt:
        """Claim a job and begin to work on it."""
        return Attempt(self, self.claim(worker))

    def running(self, **options: Any) -> Attempt:
        """A fresh job that a worker holds."""
        job = self.new(**options)
        attempt = self.attempt()
        assert attempt.job == job
        return attempt

    def reap(self, api: str = "", *, after_outage: bool = False) -> list[int]:
        """One reap, as if the last had been a moment ago, or long ago."""
        self.redis.set(single("tick"), self.now() - 10_000 if after_outage else self.now())
        return self.wait(self.store.reap(api)) if api else self.ledger.reap()

    def pass_by(self, index: str, *members: str) -> None:
        """Let what is due for these members of a sorted set of times be in the past; it must be there."""
        for member in members:
            assert self.redis.zscore(single(index), member) is not None, f"{member} is not in {index}"
            self.redis.zadd(single(index), {member: 1})

    def lose(self, job: str) -> None:
        """The job's worker fell silent: its lease expires and a reaper comes by."""
        self.pass_by("leases", job)
        self.reap()

    def now(self) -> int:
        """Redis' clock in milliseconds."""
        seconds, micros = self.redis.time()
        return seconds * 1000 + micros // 1000

    def record(self, job: str) -> dict[str, str]:
        """The job's record."""
        return cast(dict[str, str], self.redis.hgetall(key("job", job)))

    def number(self, job: str, field: str) -> int:
        """A number in the job's record."""
        return int(self.record(job).get(field) or 0)

    def state(self, job: str) -> str:
        """The job's state."""
        return self.record(job)["state"]

    def code(self, job: str) -> str:
        """Why the job ended, if it did not succeed."""
        return self.record(job).get("code", "")

    def log(self, job: str) -> list[tuple[EntryId, dict[str, Any]]]:
        """The job's log, parsed."""
        rows = cast(list[tuple[str, dict[str, str]]], self.redis.xrange(key("log", job)))
        return [(EntryId.parse(name), json.loads(fields["e"])) for name, fields in rows]

    def kinds(self, job: str) -> list[str]:
        """The kinds of the log's entries."""
        return [entry["k"] for _, entry in self.log(job)]

    def line(self) -> list[str]:
        """Who waits, best first."""
        return cast(list[str], self.redis.zrange(key("waiting", MODEL), 0, -1))

    def parked(self, tenant: str) -> list[str]:
        """Who is parked until another job of its tenant ends, best first."""
        return cast(list[str], self.redis.zrange(key("parked", f"{MODEL}:{tenant}"), 0, -1))

    def tickets(self) -> int:
        """How many tickets lie on the queue."""
        return self.redis.llen(queue_of(MODEL))

    def leased(self) -> set[str]:
        """Jobs with a lease."""
        return set(cast(list[str], self.redis.zrange(single("leases"), 0, -1)))

    def listen(self, *apis: str) -> Ear:
        """Subscribe to the relay channels of these API processes."""
        ear = Ear(self.redis, *apis)
        self._ears.append(ear)
        return ear

    def copy(self) -> Snapshot:
        """What Redis has on disk at this moment."""
        names = sorted(cast(list[bytes], self.raw.keys()))
        return {name.decode(): (cast(bytes, self.raw.dump(name)), self.raw.pttl(name)) for name in names}

    def values(self) -> dict[str, Any]:
        """Every value, for comparing before and after."""
        look: dict[str, Callable[[str], Any]] = {
            "hash": self.redis.hgetall,
            "set": self.redis.smembers,
            "string": self.redis.get,
            "list": lambda name: self.redis.lrange(name, 0, -1),
            "zset": lambda name: self.redis.zrange(name, 0, -1, withscores=True),
            "stream": self.redis.xrange,
        }
        names = cast(list[str], self.redis.keys())
        return {name: look[cast(str, self.redis.type(name))](name) for name in names}

    def roll_back(self, snapshot: Snapshot) -> None:
        """Redis restarts from an older state. A restart takes longer than any lost fence was ahead of the clock."""
        fences = {name: int(self.redis.hget(name, "fence") or 0) for name in self.redis.scan_iter(key("job", "*"))}
        created = {name: int(self.redis.hget(name, "created") or 0) for name in fences}
        self.raw.flushdb()
        for name, (value, ttl) in snapshot.items():
            self.raw.restore(name, max(ttl, 0), value)
        end = max([created[name] + fence for name, fence in fences.items()], default=0)
        patience = time.monotonic() + 5
        while self.now() <= end:
            assert time.monotonic() < patience, "a fence ran far ahead of the clock"

    def until(self, met: Callable[[], bool], patience_s: float = 20) -> None:
        """Wait for something that another thread does."""
        end = time.monotonic() + patience_s
        while not met():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    def endless(self) -> set[str]:
        """Keys of ours without a TTL that are not documented as permanent, tickets left aside."""
        permanent = tuple(SINGLES.get(name) or FAMILIES[name] for name in PERMANENT)
        names = cast(list[str], self.redis.keys(PREFIX + "*"))
        return {name for name in names if not name.startswith(permanent) and self.redis.ttl(name) == -1}
