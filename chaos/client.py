"""One client: submits until it is accepted, follows until the end, and keeps its own account of all of it.

It never gives up because of an error that a later try could mend, only after a long time without a word; then the
account says so. It does not judge: that is the audit's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from chaos.prompts import Ask
from chaos.record import TERMINAL, Account, Look, Shape, told_of
from chaos.wire import Leave, Wire, never

#: So long a client tries to be accepted, or goes on without one new event, before it gives up.
SUBMIT_S = 90.0
PATIENCE_S = 150.0
#: So often a job that was accepted is submitted again: its key must lead to it at any API.
REPEATED = 0.3
#: Answers after which trying again is senseless.
FINAL = {"job_not_found", "events_expired", "unknown_event_id", "invalid_event_id", "history_lost", "job_lost"}


class GaveUp(Exception):
    """The client went away without what it came for."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client with one job."""

    wire: Wire
    rng: random.Random
    account: Account

    @property
    def ask(self) -> Ask:
        """What it asks."""
        return self.account.ask

    async def moment(self) -> None:
        """Wait a little before the next try."""
        await asyncio.sleep(self.rng.uniform(0.2, 1.0))

    async def _until_accepted(self, attempt: Callable[[str], Awaitable[bool]]) -> str:
        """Try `attempt` at one API after the other; the one that accepted."""
        deadline = time.monotonic() + SUBMIT_S
        url = self.wire.pick()
        while not await attempt(url):
            if time.monotonic() > deadline:
                self.account.outcome = "refused"
                raise GaveUp
            await self.moment()
            url = self.wire.pick(url)
        return url

    async def submit_job(self) -> str:
        """POST /v1/jobs until it is accepted, always with the same key, so that there is one job."""
        key = secrets.token_hex(12)
        self.account.keyed = True

        async def attempt(url: str) -> bool:
            answer = await self.wire.call(self.account, "submit", "POST", f"{url}/v1/jobs", self.ask.body(), key)
            if answer is not None:
                self.account.accept(answer.json()["id"])
            return answer is not None

        url = await self._until_accepted(attempt)
        if self.rng.random() < REPEATED:
            await attempt(self.wire.pick(url))
        return url

    async def submit_stream(self, leave: Leave = never, bytes_per_s: float = 0.0, *, store: bool = False) -> str:
        """POST a streaming request until one is accepted, and read it. Returns the API; the segment says how it went."""
        completion = self.ask.route == "completion"
        path = "/v1/completions" if completion else "/v1/chat/completions"
        shape: Shape = "completion" if completion else "chat"
        body = self.ask.body(stream=True, store=store)
        if self.rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
            self.account.wants_usage = True

        async def attempt(url: str) -> bool:
            how = await self.wire.stream(
                self.account, "submit", shape, "POST", url + path, body=body, leave=leave, bytes_per_s=bytes_per_s
            )
            return how not in ("refused", "unreachable")

        return await self._until_accepted(attempt)

    async def follow(
        self, url: str, shape: Shape = "events", leave: Leave = never, bytes_per_s: float = 0.0, *, stay: bool = False
    ) -> bool:
        """Take the stream up until it ends, at another API after every break (`stay`: first at this one). False: left."""
        account, word = self.account, time.monotonic()
        path = "/v1/chat/completions/{}?stream=true" if shape == "chat" else "/v1/jobs/{}/events"
        while True:
            before = account.last
            at = url + path.format(account.job)
            how = await self.wire.stream(
                account, "resume", shape, "GET", at, after=before, leave=leave, bytes_per_s=bytes_per_s
            )
            if how in ("end", "nothing more"):
                account.note_end()
                return True
            if how == "left":
                return False
            if how == "rewind" or account.last != before:
                word = time.monotonic()
            elif time.monotonic() - word > PATIENCE_S or account.shown[-1].code in FINAL:
                raise GaveUp
            await self.moment()
            url = url if stay else self.wire.pick(url)

    def ended(self) -> bool:
        """Whether the last connection brought the end."""
        if self.account.segments and self.account.segments[-1].how == "end":
            self.account.note_end()
            return True
        return False

    async def get(self, where: str, path: str, *, method: str = "GET") -> httpx.Response:
        """A call that is repeated until it is answered, at one API after the other."""
        deadline, url = time.monotonic() + PATIENCE_S, self.wire.pick()
        while True:
            answer = await self.wire.call(self.account, where, method, url + path)
            if answer is not None:
                return answer
            if time.monotonic() > deadline or self.account.shown[-1].code in FINAL | {"job_not_cancellable"}:
                raise GaveUp
            await self.moment()
            url = self.wire.pick(url)

    async def poll(self, every_s: tuple[float, float]) -> None:
        """Ask for the job until it has ended."""
        while True:
            job = (await self.get("poll", f"/v1/jobs/{self.account.job}")).json()
            look = Look(time.monotonic(), job["state"], job["output_text"] or "")
            self.account.looks.append(look)
            if look.state in TERMINAL:
                break
            await asyncio.sleep(self.rng.uniform(*every_s))
        self.account.state, self.account.code = look.state, (job["error"] or {}).get("code")
        if look.state == "succeeded":
            self.account.told = told_of(job["result"])
