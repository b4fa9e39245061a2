"""What the clients do: each kind is one way of using the service."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from chaos.client import PATIENCE_S, Client, GaveUp
from chaos.record import TERMINAL, Segment, Shape, told_of
from chaos.wire import Leave


def after_events(count: int) -> Leave:
    """Break off after so many more events."""

    def leave(segment: Segment) -> bool:
        return len(segment.seen) >= count

    return leave


async def stream(client: Client) -> None:
    """A plain stream, read to its end; whatever breaks it, the client takes it up elsewhere."""
    url = await client.submit_stream()
    if not client.ended():
        shape: Shape = "chat" if client.ask.route == "chat" and client.rng.random() < 0.6 else "events"
        await client.follow(client.wire.pick(url), shape)
    client.account.outcome = "complete"


async def stored(client: Client) -> None:
    """A stored chat whose client breaks off and comes back, here or elsewhere, at once or later; then the answer."""
    rng = client.rng
    url = await client.submit_stream(after_events(rng.randrange(0, 80)), store=True)
    done = client.ended()
    for _ in range(rng.randrange(1, 4)):
        if done:
            break
        await asyncio.sleep(rng.choices((0.0, 0.3, 2.0, 8.0, 25.0), (30, 30, 25, 12, 3))[0])
        url = url if rng.random() < 0.4 else client.wire.pick(url)
        done = await client.follow(url, "chat", after_events(rng.randrange(1, 80)), stay=rng.random() < 0.3)
    if not done:
        await client.follow(client.wire.pick(url), "chat")
    if client.account.state == "succeeded":
        answer = await client.get("answer", f"/v1/chat/completions/{client.account.job}")
        client.account.told = told_of(answer.json())
    client.account.outcome = "complete"


async def events(client: Client) -> None:
    """A job whose log is watched with breaks; at the end there must be nothing more."""
    rng = client.rng
    url = await client.submit_job()
    for _ in range(rng.randrange(0, 3)):
        if await client.follow(client.wire.pick(url), "events", after_events(rng.randrange(1, 100))):
            break
        await asyncio.sleep(rng.choice((0.0, 0.5, 3.0)))
    else:
        await client.follow(client.wire.pick(url))
    await client.follow(client.wire.pick(url))
    client.account.outcome = "complete"


async def poll(client: Client) -> None:
    """A job that is asked for now and then."""
    await client.submit_job()
    await client.poll((0.4, 1.5))
    client.account.outcome = "complete"


async def whole(client: Client) -> None:
    """A request that waits for its whole answer, repeated with its key until there is one."""
    account, key = client.account, secrets.token_hex(12)
    account.keyed = True
    path = "/v1/completions" if client.ask.route == "completion" else "/v1/chat/completions"
    deadline, url = time.monotonic() + PATIENCE_S, client.wire.pick()
    while True:
        body = client.ask.body()
        answer = await client.wire.call(account, "submit", "POST", url + path, body, key, long=True)
        if answer is not None:
            break
        if time.monotonic() > deadline:
            account.outcome = "refused"
            raise GaveUp
        await client.moment()
        url = client.wire.pick(url)
    account.accept(answer.headers["x-penstock-job-id"])
    account.told, account.state, account.outcome = told_of(answer.json()), "succeeded", "complete"


async def cancel(client: Client) -> None:
    """A job that is cancelled, in line or in mid-sentence."""
    account = client.account
    url = await client.submit_job()
    if client.rng.random() < 0.6:
        done = await client.follow(url, "events", after_events(client.rng.randrange(1, 60)))
        if done:
            account.outcome = "complete"
            return
    try:
        job = (await client.get("cancel", f"/v1/jobs/{account.job}/cancel", method="POST")).json()
        account.cancelled_when = time.monotonic()
        account.cancelled_at = (job["state"], job["attempts"], job["usage"]["completion_tokens"])
    except GaveUp:
        refused = account.shown[-1]
        if refused.code != "job_not_cancellable":
            raise
        state = (await client.get("poll", f"/v1/jobs/{account.job}")).json()["state"]
        if state not in TERMINAL:
            account.show("cancel", "refused_though_running", refused.url)
    await client.follow(client.wire.pick(url))
    account.outcome = "complete"


async def disconnect(client: Client) -> None:
    """A stream that nobody stored: its client goes, and so must the job."""
    await client.submit_stream(after_events(client.rng.randrange(0, 50)))
    client.account.outcome = "left"


async def slow(client: Client) -> None:
    """Reads a wide stream slowly, through a small buffer: it must get all of it, and hold nobody up."""
    pace = client.rng.choice((6_000.0, 15_000.0, 40_000.0))
    url = await client.submit_stream(bytes_per_s=pace, store=True)
    if not client.ended():
        await client.follow(client.wire.pick(url), "chat", bytes_per_s=pace)
    client.account.outcome = "complete"


async def poison(client: Client) -> None:
    """A job that kills whoever runs it; it must end as poisoned, and nobody else."""
    await client.submit_job()
    await client.poll((1.0, 2.0))
    client.account.outcome = "complete"


KINDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    each.__name__: each for each in (stream, stored, events, poll, whole, cancel, disconnect, slow, poison)
}
