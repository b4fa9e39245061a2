"""The real line in simulated time: the product's own scripts, on a Redis of the model's own.

The prelude's `now()` is the one place where the scripts read a clock. Here its body reads a key instead, which the model
sets; nothing else is changed, and the arguments are built by `JobStore` and `JobLedger` themselves. Calls are collected
and go out together: what happens within one window of simulated time is one round trip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
import redis.asyncio

from tasks import lua
from tasks.errors import QueueFull
from tasks.events import Delta, End, encode
from tasks.jobs import JobSpec
from tasks.keys import key, queue_of
from tasks.ledger import Claim, JobLedger, Write
from tasks.settings import Settings, load_settings
from tasks.store import JobStore

CLOCK = "simulate:now"
_END, _DELTA = encode(End("succeeded", 1, 0, "length")), encode(Delta(0, 0, (0,), ""))
EPOCH_MS = 1_700_000_000_000
_REAL = re.compile(r"^local function now\(\)\n.*?^end\n", re.S | re.M)
_SIMULATED = f"local function now()\n  return tonumber(redis.call('GET', '{CLOCK}'))\nend\n"


@cache
def simulated_source(name: str) -> str:
    """A script of the product with the simulated clock. Raises if it reads the time in any other way."""
    text, clocks = _REAL.subn(_SIMULATED, lua.source(name))
    if clocks != 1 or "'TIME'" in text:
        raise ValueError(f"{name}.lua does not read the clock through now() alone")
    return text


@dataclass(frozen=True, slots=True)
class Row:
    """One job in a step: how many entries of this attempt are logged, its new tokens, and whether they are the last."""

    claim: Claim
    entries: int
    tokens: int
    last: bool


class _Asks(Exception):
    """What a verb of the product would send now."""


class _Store(JobStore):
    """The API's verbs; each stops where it would send, and takes the answer there."""

    async def _submit(self, *args: Any) -> Any:
        return await _Sent("submit", args)

    async def _run(self, name: str, *args: Any) -> Any:
        return await _Sent(name, args)


class _Sent:
    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self._call = (name, args)

    def __await__(self) -> Any:
        answer = yield self._call
        return answer


class _Ledger(JobLedger):
    """The worker's verbs. Without an answer at hand a verb raises `_Asks`; called again with it, it goes on."""

    answer: Any = None

    def _run(self, name: str, *args: Any) -> Any:
        if self.answer is None:
            raise _Asks(name, args)
        answer, self.answer = self.answer, None
        return answer


class Line:
    """Submit, claim, end, preempt and reap, in simulated time. `then` gets what the product's verb returns."""

    def __init__(self, url: str, settings: Settings | None = None) -> None:
        settings = settings or load_settings(lease_s=1e6)  # nobody renews here, so a lease must outlast the simulation
        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._redis.config_set("appendonly", "no")
        self._shas = {name: self._redis.script_load(simulated_source(name)) for name in lua.NAMES}
        self._store = _Store(redis.asyncio.Redis(), settings)  # never connected
        self._ledger = _Ledger(redis.Redis(), settings)
        self._calls: list[tuple[str, tuple[Any, ...], Callable[[Any], None]]] = []
        self.calls = 0

    def submit(self, spec: JobSpec, limit: int, then: Callable[[int | None], None]) -> None:
        """Put a job in line; `then` gets its position, or None if the line is full."""
        self._begin(self._store.submit(spec, limit=limit), lambda done: then(done and done.position))

    def claim(self, model: str, worker: str, then: Callable[[Claim | None], None]) -> None:
        """Take a ticket off the queue, and the best job of the line."""
        self._calls.append(("RPOP", (queue_of(model),), lambda _: None))
        self._ask(lambda: self._ledger.claim(model, worker), lambda got: then(got if isinstance(got, Claim) else None))

    def step(self, rows: list[Row], lacking: int, then: Callable[[list[str]], None]) -> None:
        """What a worker tells after a step, all new tokens of each job as one entry. `lacking`: lanes that it is short of."""
        writes = [
            Write(row.claim.spec.id, row.claim.fence, row.claim.seq + 1 + row.entries, [(_entry(row), row.tokens)],
                  "succeeded" if row.last else "")
            for row in rows
        ]  # fmt: skip
        self._ask(lambda: self._ledger.step(writes, lacking), lambda answers: then([each.verdict for each in answers]))

    def forget(self, job: str) -> None:
        """Free the memory of a job that has ended; the product does it some time later."""
        self._calls.append(("UNLINK", (key("job", job), key("log", job)), lambda _: None))

    @property
    def pending(self) -> bool:
        """True while calls wait for the next flush."""
        return bool(self._calls)

    def flush(self, now: float) -> None:
        """Send all that was asked for, at `now` seconds of simulated time, in this order; then hand out the answers."""
        calls, self._calls = self._calls, []
        pipe: Any = self._redis.pipeline(transaction=False)
        pipe.set(CLOCK, EPOCH_MS + int(now * 1000))
        for name, args, _ in calls:
            command = (name,) if name.isupper() else ("EVALSHA", self._shas[name], 0)
            pipe.execute_command(*command, *args)
        for (_, _, then), answer in zip(calls, pipe.execute()[1:], strict=True):
            then(answer)
        self.calls += len(calls)

    def tickets(self, model: str) -> int:
        """How many lie on the model's queue."""
        return int(self._redis.llen(queue_of(model)))

    def script_us(self) -> float:
        """Microseconds that Redis has spent in scripts so far."""
        spent: Any = self._redis.info("commandstats")
        return float(spent["cmdstat_evalsha"]["usec"])

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _begin(self, verb: Coroutine[Any, Any, Any], then: Callable[[Any], None]) -> None:
        name, args = verb.send(None)

        def resume(answer: Any) -> None:
            try:
                verb.send(answer)
            except StopIteration as done:
                then(done.value)
            except QueueFull:
                then(None)

        self._calls.append((name, args, resume))

    def _ask(self, verb: Callable[[], Any], then: Callable[[Any], None]) -> None:
        try:
            verb()
        except _Asks as asked:
            name, args = asked.args
        else:
            raise RuntimeError("a verb of the ledger sent nothing")

        def resume(answer: Any) -> None:
            self._ledger.answer = answer
            then(verb())

        self._calls.append((name, args, resume))


def _entry(row: Row) -> str:
    return _END if row.last else _DELTA
