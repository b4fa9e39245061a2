"""The worker's side of the job protocol: claim, step, renew, release. Synchronous; each method is one round trip.

Every method raises `StoreDown` when Redis cannot be reached or refuses the call; all but `claim` are safe to repeat.
The API's side is `tasks.store`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError

from tasks import lua
from tasks.errors import StoreDown, StoreRefused
from tasks.events import START, Entry, EntryId, decode
from tasks.jobs import JobSpec
from tasks.keys import key
from tasks.profile import ModelProfile, WorkerCard
from tasks.settings import Settings

#: How a Redis says that it takes no writes from anybody. From within a script some versions wrap it into another error.
NO_WRITES = ("OOM command", "READONLY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "LOADING ")


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is ours under `fence`. `seq` is that of its `started` entry; a job with strikes must run alone.

    `firm`: it was let in for its age, and does not yield.
    """

    spec: JobSpec
    fence: int
    attempt: int
    seq: int
    strikes: int
    firm: bool = False


@dataclass(frozen=True, slots=True)
class Draining:
    """The answer to a claim of a worker that is going away. The ticket is dropped: reaping replaces it."""


@dataclass(frozen=True, slots=True)
class Write:
    """What one engine step adds to one job: `entries` (JSON, new tokens) from `first` on; the last is the end, if any.

    `end` is the terminal state, `code` and `message` go into the record.
    """

    job: str
    fence: int
    first: int
    entries: Sequence[tuple[str, int]]
    end: str = ""
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store says of one job: ok, cancel, deadline, fenced, lost, yield (it is back in line, for a more urgent one),
    or behind (resend what follows `seq`)."""

    verdict: str
    seq: int = 0

    @classmethod
    def parse(cls, text: str) -> Answer:
        """From the script's answer."""
        verdict, _, seq = text.partition(" ")
        return cls(verdict, int(seq or 0))


class JobLedger:
    """The worker's verbs on jobs. One instance per worker process; threads may share it."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._lease_ms = int(settings.lease_s * 1000)
        self._ageing_ms = int(settings.ageing_s * 1000)
        self._scripts = {name: client.register_script(lua.source(name)) for name in lua.NAMES}

    def claim(self, model: str, worker: str, *, aged: bool = True) -> Claim | Draining | None:
        """Take the best waiting job; with `aged` sometimes one that has waited long before it. Not repeatable: a claim whose answer was lost is given back by the reaper."""
        match self._run("claim", model, worker, self._lease_ms, self._ageing_ms if aged else ""):
            case ["claimed", _, fence, attempt, seq, strikes, firm, spec]:
                return Claim(JobSpec.from_json(spec), int(fence), int(attempt), int(seq), int(strikes), firm == 1)
            case ["draining"]:
                return Draining()
        return None

    def read_all(self, job_id: str) -> list[tuple[EntryId, Entry]]:
        """The whole log, page by page."""
        entries: list[tuple[EntryId, Entry]] = []
        start = START
        while rows := self._call(self._redis.xrange, key("log", job_id), min=str(start), count=1000):
            entries += [(EntryId.parse(name), decode(json.loads(fields["e"]))) for name, fields in rows]
            start = EntryId(entries[-1][0].fence, entries[-1][0].seq + 1)
        return entries

    def step(self, writes: Sequence[Write], lacking: int = 0) -> list[Answer]:
        """Append to the logs of all jobs and relay what was accepted; one answer per write.

        `lacking`: places that the worker lacks for one job more. If any, a batch job may have to yield.
        """
        args: list[Any] = [lacking]
        for write in writes:
            args += (write.job, write.fence, write.first, len(write.entries))
            for entry, tokens in write.entries:
                args += (entry, tokens)
            args += (write.end, write.code, write.message)
        return [Answer.parse(text) for text in self._run("step", *args)]

    def renew(self, held: Sequence[tuple[str, int, int]]) -> list[Answer]:
        """Renew the leases of (job, fence, last seq); one answer each."""
        return [
            Answer.parse(text) for text in self._run("renew", self._lease_ms, *(part for row in held for part in row))
        ]

    def release(self, job_id: str, fence: int) -> bool:
        """Give a running job back into line, with its tokens. False: it was not ours any more."""
        return bool(self._run("release", job_id, fence) == "ok")

    def reap(self) -> list[int]:
        """Requeue what lost its owner, cancel orphans, repair tickets."""
        s = self._settings
        grace = int(s.orphan_s * 1000)
        return cast(list[int], self._run("reap", self._lease_ms, grace, s.max_strikes, s.max_losses, ""))

    def beat(self, card: WorkerCard, ttl_s: float) -> None:
        """Show the worker's card for `ttl_s` seconds."""
        self._run("beat", card.name, int(ttl_s * 1000), card.to_json())

    def drain(self, worker: str) -> None:
        """From now on this worker claims nothing."""
        self._call(self._redis.set, key("draining", worker), "1", ex=3600)

    def publish_profile(self, model: str, profile: ModelProfile) -> None:
        """Tell the API how to render and tokenise for this model."""
        mapping = {"digest": profile.digest, "json": profile.to_json()}
        self._call(self._redis.hset, key("profile", model), mapping=mapping)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _run(self, name: str, *args: Any) -> Any:
        return self._call(self._scripts[name], args=args)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ResponseError as error:
            raise (StoreDown if _takes_no_writes(error) else StoreRefused)(f"Redis: {error}") from error
        except (RedisError, OSError) as error:
            raise StoreDown(f"Redis: {error}") from error


def _takes_no_writes(error: ResponseError) -> bool:
    """Full, a replica, or without the replicas that it must have: an outage, and no job's fault."""
    return isinstance(error, OutOfMemoryError | ReadOnlyError | MasterDownError) or any(
        word in str(error) for word in NO_WRITES
    )
