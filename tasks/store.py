"""The API's side of the job protocol: submit, read, watch, cancel, preempt. Asynchronous; each method is one round trip.

Every method raises `StoreDown` when Redis cannot be reached or refuses the call. The worker's side is `tasks.ledger`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import redis.asyncio
from redis.exceptions import RedisError

from tasks import lua
from tasks.batching import Batching
from tasks.errors import Conflict, QueueFull, RateLimited, StoreDown, UnknownJob
from tasks.events import START, Entry, EntryId, decode
from tasks.jobs import BAND_SPAN, BANDS, Job, JobSpec, JobState
from tasks.keys import key, queue_of, single
from tasks.profile import ModelProfile, WorkerCard
from tasks.rates import Rates
from tasks.settings import Settings
from tasks.tenants import EVERYBODY, Tenant

#: Places in line that are asked for at a time, so that neither Redis nor the event loop is held up.
PLACES = 500


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted job: `existing` when an idempotency key led to an earlier one. `position` 1 is next in line.

    `created_ms` is by Redis' clock; 0 for an existing job. `rates`: what is left of the tenant's, if it has any.
    """

    id: str
    existing: bool
    position: int | None
    created_ms: int = 0
    rates: Rates | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """Where a job stood at the moment when its entries began to be relayed."""

    state: JobState
    last: EntryId


@dataclass(frozen=True, slots=True)
class Line:
    """A model's line: jobs waiting (parked ones included), tickets on the Celery queue, and the mean time of a token on a
    lane beside others, as far as that is known. For each band: how many jobs stand in line, and the tokens that their
    answers are expected to have.
    """

    waiting: int
    tickets: int
    token_ms: float | None
    standing: tuple[int, ...] = (0, 0, 0)
    answers: tuple[int, ...] = (0, 0, 0)

    def before(self, band: int) -> int:
        """How many stand before a new job of this band."""
        return sum(self.standing[: band + 1])


class JobStore:
    """The API's verbs on jobs. One instance per process; safe for concurrent tasks."""

    def __init__(self, client: redis.asyncio.Redis, settings: Settings) -> None:
        self._redis = client
        self._settings = settings
        self._term_ms = int(settings.lease_s * 3000)  # an API process that is silent this long watches nothing any more
        self._scripts = {name: client.register_script(lua.source(name)) for name in lua.NAMES}
        self._submits = Batching(client, self._scripts["submit"])

    async def submit(
        self,
        spec: JobSpec,
        *,
        limit: int,
        token_limit: int = 0,
        tenant: Tenant = EVERYBODY,
        listed: bool = False,
        api: str = "",
        idempotency_key: str = "",
        body_hash: str = "-",
    ) -> Submitted:
        """Put a job in line, atomically, or find the one that its idempotency key stands for.

        Raises `QueueFull` when `limit` jobs or `token_limit` tokens (0: any) wait for the model, or as many jobs of the
        tenant as may; `RateLimited` beyond its rates; `Conflict` for a key that came with another body.
        """
        options = {
            "id": spec.id, "model": spec.model, "tenant": spec.tenant, "band": BANDS[spec.priority],
            "prompt": spec.prompt_tokens, "choices": spec.choices, "most": spec.sampling.max_tokens,
            "deadline": spec.deadline_ms or 0, "keep": spec.retention_s, "store": int(spec.store), "listed": listed,
            "api": api, "term": self._term_ms, "idem": idempotency_key, "hash": body_hash,
            "max_jobs": limit, "max_tokens": token_limit, "weight": tenant.weight, "share": tenant.max_running,
            "max_waiting": tenant.max_waiting,
            "requests": tenant.requests_per_minute, "tokens": tenant.tokens_per_minute,
        }  # fmt: skip
        answer = await self._submit(json.dumps(options), spec.to_json())
        return _submitted(answer, spec, tenant)

    async def knows(self, tenant: str, idempotency_key: str) -> bool:
        """True if a job was accepted under this key, and the key still stands for it."""
        return bool(await self._wait(self._redis.exists(key("idem", f"{tenant}:{idempotency_key}"))))

    async def get(self, job_id: str) -> tuple[Job, int | None] | None:
        """A job's record and its position in line (1 is next, None when it does not wait); None if there is none."""
        data = await self._wait(self._redis.hgetall(key("job", job_id)))
        if "spec" not in data:
            return None
        job = Job.from_hash(data)
        return job, (await self.positions([job_id]))[0] if job.state is JobState.QUEUED else None

    async def positions(self, ids: Sequence[str]) -> list[int | None]:
        """Their places in line (1 is next), None for each that does not wait. Cheaper than `get`."""
        found: list[int | None] = []
        for at in range(0, len(ids), PLACES):
            found += [place or None for place in await self._run("where", *ids[at : at + PLACES])]
        return found

    async def attach(self, job_id: str, api: str) -> Attached | None:
        """From now on relay the job's entries to this API process. None: there is no such job."""
        state, *last = await self._run("attach", job_id, api, self._term_ms)
        return Attached(JobState(state), EntryId(int(last[0]), int(last[1]))) if last else None

    async def detach(self, job_id: str, api: str, grace_s: float) -> None:
        """Stop relaying. A job that nobody watches and that is not stored is cancelled after the grace (0: at once)."""
        await self._run("detach", job_id, api, int(grace_s * 1000))

    async def watched(self, api: str) -> set[str]:
        """The jobs that are relayed to this API process, as Redis has it."""
        return set(await self._wait(self._redis.smembers(key("watched", api))))

    async def cancel(self, job_id: str) -> str:
        """cancelled (it never ran), requested (its worker stops it), "already <state>", or gone."""
        return cast(str, await self._run("cancel", job_id))

    async def preempt(self, job_id: str) -> str:
        """Put a running job back into line with its tokens, without blame: a more urgent one gets its lane.

        preempted, "ended <state>" (a cancel or its deadline was due), "already <state>" (it does not run), or gone. Its
        worker is refused from now on and frees the lane at its next step, at the latest when it renews its lease.
        """
        return cast(str, await self._run("preempt", job_id))

    async def read(self, job_id: str, start: EntryId = START, count: int = 500) -> list[tuple[EntryId, Entry]]:
        """Entries of the log from `start` on, `start` itself included, at most `count`."""
        rows = await self._wait(self._redis.xrange(key("log", job_id), min=str(start), count=count))
        return [(EntryId.parse(entry_id), decode(json.loads(fields["e"]))) for entry_id, fields in rows]

    async def read_all(self, job_id: str) -> list[tuple[EntryId, Entry]]:
        """The whole log, page by page."""
        entries: list[tuple[EntryId, Entry]] = []
        start = START
        while page := await self.read(job_id, start):
            entries += page
            start = EntryId(page[-1][0].fence, page[-1][0].seq + 1)
        return entries

    async def line(self, model: str) -> Line:
        """How long the model's line is, and how fast it moves."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.llen(queue_of(model))
        pipe.hmget(key("pace", model), "busy_ms", "idle_ms")
        pipe.hmget(key("length", model), "jobs", *(f"answers {band}" for band in BANDS.values()))
        for band in BANDS.values():
            pipe.zcount(key("waiting", model), band * BAND_SPAN, f"({(band + 1) * BAND_SPAN}")
        tickets, (busy, idle), (waiting, *answers), *standing = await self._wait(pipe.execute())
        token_ms = busy or idle
        expected = tuple(int(tokens or 0) for tokens in answers)
        return Line(int(waiting or 0), tickets, float(token_ms) if token_ms else None, tuple(standing), expected)

    async def workers(self) -> list[WorkerCard]:
        """The cards of all workers that were heard of lately, by name."""
        names = await self._wait(self._redis.zrange(single("workers"), 0, -1))
        if not names:
            return []
        cards = await self._wait(self._redis.mget([key("worker", name) for name in names]))
        return sorted((WorkerCard.from_json(card) for card in cards if card), key=lambda card: card.name)

    async def profile(self, model: str, known: str = "") -> ModelProfile | Literal["same"] | None:
        """The model's profile; "same" if its digest is still `known`; None if no worker ever loaded the model."""
        digest = await self._wait(self._redis.hget(key("profile", model), "digest"))
        if digest is None or digest == known:
            return None if digest is None else "same"
        text = await self._wait(self._redis.hget(key("profile", model), "json"))
        return None if text is None else ModelProfile.from_json(text)

    async def jobs(self, tenant: str, limit: int, after: str | None = None) -> list[str]:
        """Ids of submitted jobs, newest first, those after the id `after`. Raises `UnknownJob` if that is not listed."""
        name = key("jobs", tenant)
        start = 0
        if after is not None:
            rank = await self._wait(self._redis.zrevrank(name, after))
            if rank is None:
                raise UnknownJob(f"after: there is no job {after} in the list", param="after")
            start = rank + 1
        return cast(list[str], await self._wait(self._redis.zrevrange(name, start, start + limit - 1)))

    async def reap(self, api: str) -> list[int]:
        """Requeue what lost its owner, cancel orphans, repair tickets; also renews this API process."""
        s = self._settings
        lease, grace = int(s.lease_s * 1000), int(s.orphan_s * 1000)
        return cast(list[int], await self._run("reap", lease, grace, s.max_strikes, s.max_losses, api))

    async def ping(self) -> None:
        """Raises `StoreDown` unless Redis answers."""
        await self._wait(self._redis.ping())

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _submit(self, *args: Any) -> Any:
        return await self._wait(self._submits.call(*args))

    async def _run(self, name: str, *args: Any) -> Any:
        return await self._wait(self._scripts[name](args=args))

    async def _wait(self, call: Any) -> Any:
        try:
            return await cast(Awaitable[Any], call)
        except (RedisError, OSError, RuntimeError) as error:  # uvloop's word for a connection that was reset while idle
            raise StoreDown(f"Redis: {error}") from error


def _submitted(answer: list[Any], spec: JobSpec, tenant: Tenant) -> Submitted:
    """What submit.lua answered, as a result or an exception."""
    match answer:
        case ["created", job_id, position, created, requests, tokens]:
            return Submitted(job_id, False, position, int(created), tenant.rates(requests, tokens))
        case ["existing", job_id]:
            return Submitted(job_id, True, None)
        case ["full", many, what]:
            what = {"jobs": "jobs", "tokens": "tokens", "tenant": f"jobs of {spec.tenant}"}[what]
            raise QueueFull(f"{many} {what} already wait for {spec.model}: try again later", 1)
        case ["limited", what, wait_ms, requests, tokens]:
            text = f"{spec.tenant} is beyond its rate of {what} per minute: try again in {wait_ms / 1000:.1f} seconds"
            raise RateLimited(text, -(-wait_ms // 1000), tenant.rates(requests, tokens))
    raise Conflict("this Idempotency-Key was used with another body", param="Idempotency-Key")
