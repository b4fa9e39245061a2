"""Looks into the store while the storm goes on: of each job some time after its client is through, so that late writes
of a worker that came back are seen, and before its log expires.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from chaos.audit import Copy, Finding, audit
from chaos.circumstances import Sky, ending, recoveries, unexplained
from chaos.record import Account, place_of
from chaos.report import Tally
from tasks.keys import key

#: So long a job may still run when its client has gone: an orphan's time and more.
GRACE_S = 100.0
PAGE = 1000


class Auditor:
    """`through` takes an account; `run` judges those that are due until it is cancelled, `finish` judges the rest."""

    def __init__(self, store: Any, sky: Callable[[], Sky], tally: Tally, settle_s: float) -> None:
        self._store = store
        self._sky = sky
        self._tally = tally
        self._settle_s = settle_s
        self._waiting: list[tuple[float, Account]] = []

    def through(self, account: Account) -> None:
        """Its client is through."""
        self._waiting.append((time.monotonic() + self._settle_s, account))

    async def run(self) -> None:
        """Judge what is due, for ever."""
        while True:
            await self._judge_due(time.monotonic())
            await asyncio.sleep(0.2)

    async def finish(self, seconds: float) -> None:
        """Judge everything that is left. What has not ended after so many seconds is lost."""
        deadline = time.monotonic() + seconds
        while self._waiting:
            over = time.monotonic() > deadline
            await self._judge_due(math.inf if over else time.monotonic(), over)
            await asyncio.sleep(0.5)

    async def _judge_due(self, now: float, over: bool = False) -> None:
        due = [row for row in self._waiting if row[0] <= now]
        for row in due:
            try:
                judged = await self._judge(row[1], over)
            except (RedisError, OSError):
                return  # Redis is away: everybody waits
            self._waiting.remove(row)
            if not judged:
                self._waiting.append((time.monotonic() + 1.0, row[1]))

    async def _judge(self, account: Account, over: bool) -> bool:
        """False: it may still end."""
        sky = self._sky()
        findings, tokens = list(unexplained(account, sky)), 0
        if account.job:
            copy = await copy_of(self._store, account.job)
            # Where Redis may have lost its end, or the word that it was cancelled, it runs again, all of it.
            patient = not over and (sky.lossy or time.monotonic() < account.over + GRACE_S)
            if copy is not None and copy.record["state"] in ("queued", "running") and patient:
                return False
            findings += audit(account, copy, sky.lossy)
            if copy is not None:
                tokens = int(copy.record["tokens"])
                findings += ending(account, copy, sky)
                self._tally.recoveries += recoveries(account, sky)
        elif account.outcome == "refused":
            findings.append(Finding("errors", f"({account.kind})", "no API accepted it for so long that it gave up"))
        self._tally.add(account, findings, sky, tokens)
        account.forget()
        return True


async def copy_of(store: Any, job: str) -> Copy | None:
    """What the store has of a job now."""
    record = await store.hgetall(key("job", job))
    if "state" not in record:
        return None
    log, start = [], "-"
    while rows := await store.xrange(key("log", job), min=start, count=PAGE):
        log += [(place_of(name), json.loads(fields["e"])) for name, fields in rows]
        start = f"({rows[-1][0]}"
    return Copy(record, log)
