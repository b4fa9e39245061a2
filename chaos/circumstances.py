"""Which faults were about when something happened: the only excuse there is for an error, a lost lease or a delay.

An error that no fault explains is a broken promise, however harmless it looks, and so is a lease that was lost although
nothing happened to a worker. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from chaos.audit import Column, Copy, Finding
from chaos.faults import FAULTS
from chaos.record import LOSS, Account, Shown

#: After a fault healed, what it broke may still be starting.
AFTER_S = 20.0
#: What shows at once or never; and what lasts: a supervisor that was killed does not start again while Redis is paused,
#: and the demo model's only worker needs long to load when both cores are busy.
SOON_S = {"cut": 6.0, "server_shutdown": 8.0, "store_unavailable": 10.0, "unreachable": 50.0, "no_worker": 45.0}
#: What a slow reader may be behind.
SLOW_S = 120.0
#: An order to a worker is obeyed within moments, and the record of a fault may be a little late.
BEFORE_S = 1.0

#: The wing has an API of its own, which dies with it.
_API = ("api_", "supervisor_", "workers_gone")
#: Whoever is told to stop says so to its streams; whoever is killed cannot.
_STOPPED, _CUT = ("api_stop", "supervisor_", "workers_gone"), ("api_kill", "supervisor_", "workers_gone")
_REDIS = ("redis_", "sentinel", "kill_commands", "kill_subscription")
_WORKER = ("worker_", "workers_", "step_", "supervisor_")
#: Faults that may cost a lease. A drain gives its jobs back, and an error inside a step keeps them.
_LOSING = (*(kind for kind, fault in FAULTS.items() if fault.takes_leases), "poison")
#: Only these cost one of an attempt that had made a token; the others at most that of a claim whose answer was lost.
_DEADLY = ("worker_kill", "worker_kill_before_claim", "worker_zombie", "step_hang", "workers_gone", "supervisor_kill")

#: With these about, it is not known for sure whose jobs a fault took.
_BLURRED = ("poison", "worker_kill_before_claim", "step_hang", "workers_gone", "redis_", "kill_", "supervisor_")

#: (where, code) → the faults that allow it. The empty text: always allowed.
ALLOWED: dict[tuple[str, str], tuple[str, ...]] = {
    ("submit", "store_unavailable"): (*_REDIS, *_API),
    ("submit", "no_worker"): (*_WORKER, *_REDIS),
    ("submit", "server_shutdown"): _STOPPED,
    ("submit", "unreachable"): _API,
    ("submit", "cut"): _API,
    ("stream", "cut"): _CUT,
    ("stream", "server_shutdown"): _STOPPED,
    ("cancel", "job_not_cancellable"): ("",),
}
for _where in ("resume", "poll", "cancel", "answer"):
    ALLOWED[_where, "store_unavailable"] = _REDIS
    for _code in ("unreachable", "cut", "server_shutdown"):
        ALLOWED[_where, _code] = _API


class Struck(Protocol):
    """A fault that was drawn; `chaos.storm.Struck` is one."""

    @property
    def kind(self) -> str:
        """As in the table."""

    @property
    def at(self) -> float:
        """When, in monotonic seconds."""

    @property
    def until(self) -> float:
        """When it was healed."""

    @property
    def target(self) -> str:
        """The member that was hit, by name."""

    @property
    def jobs(self) -> tuple[str, ...]:
        """Those that its target was running."""


@dataclass(frozen=True, slots=True)
class Sky:
    """Everything that struck so far. `calm_until`: no fault was allowed before. `lossy`: Redis may lose writes.

    `urls` are the APIs' by the target of a fault: only one on the API that it used excuses a client's broken connection.
    `single`: models with one worker, which has to come back before their jobs go on. `lapse_s`: in what time a lease is
    over, and found to be. `bounds`: for each kind that is held to it, how long the jobs that it hit may take to go on.
    """

    struck: Sequence[Struck]
    calm_until: float = 0.0
    lossy: bool = False
    urls: Mapping[str, str] = field(default_factory=dict)
    single: frozenset[str] = frozenset()
    lapse_s: float = 6.0
    bounds: Mapping[str, float] = field(default_factory=dict)

    def about(self, begin: float, end: float, after_s: float = AFTER_S) -> Iterator[Struck]:
        """The faults that were at work then, or had just healed."""
        return (one for one in self.struck if one.at - BEFORE_S <= end and begin <= max(one.at, one.until) + after_s)

    def allows(self, shown: Shown) -> bool:
        """Whether a fault explains this error, and it is one that such a fault may show."""
        if self.lossy and shown.code in LOSS:
            return any(one.kind.startswith("redis_") for one in self.about(shown.at, shown.at))
        kinds = ALLOWED.get((shown.where, shown.code), ())
        if not kinds or "" in kinds:
            return bool(kinds)
        faults = self.about(shown.at, shown.at, SLOW_S if shown.slow else SOON_S.get(shown.code, AFTER_S))
        return any(one.kind.startswith(kinds) and self._concerns(one, shown) for one in faults)

    def _concerns(self, fault: Struck, shown: Shown) -> bool:
        """A fault on an API is no excuse for another one; what is about workers may be answered by any."""
        if not fault.kind.startswith(_API) or shown.code == "no_worker":
            return True
        url = self.urls.get(fault.target)
        return url is not None and shown.url.startswith(url)


def unexplained(account: Account, sky: Sky) -> Iterator[Finding]:
    """Errors that were shown although no fault explains them."""
    for shown in account.shown:
        if not sky.allows(shown):
            where = f"{shown.where}: {shown.code} from {shown.url}"
            yield Finding("errors", account.job or f"({account.kind}, never accepted)", where)


def ending(account: Account, copy: Copy, sky: Sky) -> Iterator[Finding]:
    """Whether the job ended as what its client did to it allows."""
    for column, text in _ending(account, copy, sky):
        yield Finding("taken back" if sky.lossy else column, account.job, text)


def _ending(account: Account, copy: Copy, sky: Sky) -> Iterator[tuple[Column, str]]:
    record = copy.record
    state, code, losses = record["state"], record.get("code", ""), int(record.get("losses") or 0)
    wanted = {"disconnect": ("cancelled",), "cancel": ("cancelled", "succeeded"), "poison": ("failed",)}
    if state not in wanted.get(account.kind, ("succeeded",)):
        yield "wrong ends", f"a {account.kind} ended {state} {code}"
    if account.kind == "poison" and (code, state) != ("poisoned", "failed"):
        yield "wrong ends", f"a poisoned job ended {state} {code}"
    if account.kind == "poison" and losses > POISON_LOSSES:
        yield "wrong ends", f"a poisoned job took {losses} workers with it"
    if account.kind == "cancel" and account.cancelled_at is not None:
        yield from _cancelled(account, record, sky)
    if account.kind != "poison":
        yield from _needless(account, losses, copy, sky)
    if account.over <= sky.calm_until and int(record.get("attempt") or 0) > 1 and not sky.lossy:
        yield "wrong ends", f"it took {record['attempt']} attempts in the calm before the storm"


#: Three deaths alone, one that made progress, and what other faults may add.
POISON_LOSSES = 8
#: How long the job of a client that left may run on, if its API process died with the client.
ORPHANED_S = 90.0
#: Tokens that a worker may still make after an accepted cancel: one step undisturbed, what it may hold when cut off.
CANCEL_TOKENS, CANCEL_TOKENS_CUT_OFF = 40, 300


def _cancelled(account: Account, record: dict[str, str], sky: Sky) -> Iterator[tuple[Column, str]]:
    assert account.cancelled_at is not None
    state, attempts, tokens = account.cancelled_at
    if int(record["attempt"]) > attempts and not sky.lossy:
        yield (
            "wrong ends",
            f"it was claimed after its cancel was accepted: attempt {record['attempt']} after {attempts}",
        )
    if state != "running" and record["state"] != state:
        yield "wrong ends", f"cancelling answered {state}, but it ended {record['state']}"
    when = account.cancelled_when
    cut_off = any(one.kind.startswith(("redis_", "kill_")) for one in sky.about(when, when, sky.lapse_s))
    more, most = int(record["tokens"]) - tokens, CANCEL_TOKENS_CUT_OFF if cut_off else CANCEL_TOKENS
    if more > most * len(account.ask.answers):
        yield "wrong ends", f"{more} tokens were made after its cancel was accepted"


def _needless(account: Account, losses: int, copy: Copy, sky: Sky) -> Iterator[tuple[Column, str]]:
    """Leases that were lost though nothing can have taken them."""
    # An orphan runs on for its grace, and longer when Redis is away.
    over = account.over + (ORPHANED_S if account.outcome == "left" else 0.0)
    near = {one.kind for one in sky.about(account.began, over, sky.lapse_s)}
    hits = sum(account.job in one.jobs for one in sky.struck if one.kind in _DEADLY)
    fruitless = _fruitless(copy)
    if losses and not near & set(_LOSING):
        yield "wrong ends", f"it lost {losses} leases, and nothing had happened to a worker or to Redis"
    elif losses > fruitless and not near & {*_DEADLY, "poison"} and not sky.lossy:
        yield "wrong ends", f"it lost {losses} leases in the middle of an answer, and no worker had died or hung"
    elif losses > fruitless + hits and not any(kind.startswith(_BLURRED) for kind in near):
        yield "wrong ends", f"it lost {losses} leases, and only {hits} of its workers had died or hung"


def _fruitless(copy: Copy) -> int:
    """Attempts that were over before they had made a token."""
    kinds = [entry["k"] for _, entry in copy.log if isinstance(entry, dict)]
    return sum(pair == ("started", "started") for pair in pairwise(kinds))


#: Beyond the lease, what the jobs of a dead worker may take to go on; and how long a fault that healed counts as near.
RECOVERY_S, LATE_S = 2.0, 1.5


@dataclass(frozen=True, slots=True)
class Recovery:
    """From a fault to the next token of a job that it hit, as its client saw it.

    `alone`: no other fault in between or just before, and the model had another worker.
    """

    kind: str
    seconds: float
    alone: bool


def recoveries(account: Account, sky: Sky) -> Iterator[Recovery]:
    """Of every fault that took this job from its worker while its client was reading."""
    seen = [one for segment in account.current() if not segment.paced for one in segment.seen]
    for fault in sky.struck:
        if account.job not in fault.jobs or fault.kind not in (*_DEADLY, "worker_drain"):
            continue
        before = [one.place[0] for one in seen if one.at <= fault.at]
        fence = before[-1] if before else None
        after = (one for one in seen if fence is not None and one.place[0] > fence and one.kind != "started")
        first = next(after, None)
        if first is None or not _watched(account, fault.at, first.at):
            continue
        # What comes when it should long have gone on is no excuse: it would hide the slowest.
        until = min(first.at, fault.at + sky.bounds.get(fault.kind, math.inf))
        others = any(
            one is not fault and one.at <= until and max(one.at, one.until) + LATE_S >= fault.at for one in sky.struck
        )
        yield Recovery(fault.kind, first.at - fault.at, not others and account.ask.model not in sky.single)


def _watched(account: Account, begin: float, end: float) -> bool:
    """Whether one connection lasted: a client that was away has seen nothing of the recovery."""
    spans = [(one.seen[0].at, one.seen[-1].at) for one in account.current() if one.seen]
    return any(first <= begin and end <= last for first, last in spans)
