"""How a client speaks HTTP: one connection per call, errors noted and never hidden, streams read event by event.

A call that failed is shown in the account; whether that was allowed is for the audit to say. Nothing is retried in here.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx

from chaos.record import START, Account, Place, Segment, Shape
from chaos.sse import Assembler, Parser, Stop

#: A stream says something every 10 s at least; a command may wait for a Redis that stands still for 20 s.
SILENCE_S = 30.0
CONNECT_S = 10.0
#: An answer in one piece is silent until it is whole.
WHOLE_S = 140.0
#: Little room between server and slow reader, or the kernel's buffers would read for it.
SMALL_BUFFER = 4096

Leave = Callable[[Segment], bool]


def never(segment: Segment) -> bool:
    """Read to the end."""
    return False


class Wire:
    """Shared by all clients. `urls` are the APIs that should be reachable at this moment."""

    def __init__(self, urls: Callable[[], list[str]], rng: random.Random) -> None:
        self._urls = urls
        self._ever = urls()
        self._rng = rng
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)]
        self._usual = httpx.AsyncClient(verify=False, limits=limits, timeout=timeout, trust_env=False)
        transport = httpx.AsyncHTTPTransport(verify=False, limits=limits, socket_options=small, trust_env=False)
        self._slow = httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._usual.aclose()
        await self._slow.aclose()

    def pick(self, other_than: str = "") -> str:
        """An API, another one if there is one; one that is down when all are."""
        urls = self._urls() or self._ever
        others = [url for url in urls if url != other_than]
        return self._rng.choice(others or urls)

    async def call(
        self, account: Account, where: str, method: str, url: str, body: Any = None, key: str = "", long: bool = False
    ) -> httpx.Response | None:
        """A call that is answered in one piece; `long`: not before a whole generation. None: it failed, and the account
        says how."""
        headers = {"idempotency-key": key} if key else {}
        timeout = httpx.Timeout(WHOLE_S if long else SILENCE_S, connect=CONNECT_S)
        try:
            response = await self._usual.request(method, url, json=body, headers=headers, timeout=timeout)
        except httpx.HTTPError as error:
            account.show(where, failure_of(error), url)
            return None
        if response.status_code >= 400:
            if key and "x-penstock-job-id" in response.headers:
                account.accept(response.headers["x-penstock-job-id"])
            account.show(where, code_of(response), url)
            return None
        return response

    async def stream(
        self,
        account: Account,
        where: str,
        shape: Shape,
        method: str,
        url: str,
        *,
        body: Any = None,
        after: Place = START,
        leave: Leave = never,
        bytes_per_s: float = 0.0,
    ) -> str:
        """One connection's stream. Returns how it ended, or refused, or unreachable."""
        headers = {} if after == START else {"last-event-id": f"{after[0]}-{after[1]}"}
        client = self._slow if bytes_per_s else self._usual
        segment: Segment | None = None
        try:
            async with client.stream(method, url, json=body, headers=headers) as response:
                if response.status_code == 204:
                    return "nothing more"
                if response.status_code != 200:
                    await response.aread()
                    account.show(where, code_of(response), url)
                    return "refused"
                account.accept(response.headers["x-penstock-job-id"])
                segment = account.open(shape, url, after, bool(bytes_per_s))
                segment.how = await self._read(account, segment, response, leave, bytes_per_s)
        except httpx.HTTPError as error:
            failure = failure_of(error)
            account.show("stream" if segment else where, failure, url, bool(bytes_per_s))
            if segment is None:
                return "unreachable"
            segment.how = segment.how or failure
        return segment.how

    async def _read(
        self, account: Account, segment: Segment, response: httpx.Response, leave: Leave, bytes_per_s: float
    ) -> str:
        parser, assembler = Parser(), Assembler(segment.shape)
        if leave(segment):
            return "left"
        async for data in response.aiter_raw():
            for event in parser.feed(data):
                found = assembler.take(event, time.monotonic())
                if isinstance(found, Stop):
                    return self._stopped(account, segment, found)
                if found is not None:
                    segment.seen.append(found)
                    if leave(segment):
                        return "left"
                    if found.kind == "end" and segment.shape == "events":
                        return "end"
            if bytes_per_s:
                await asyncio.sleep(len(data) / bytes_per_s)
        account.show("stream", "eof", segment.url)  # neither the end nor a word about an error
        return "eof"

    def _stopped(self, account: Account, segment: Segment, stop: Stop) -> str:
        if stop.how == "error":
            account.show("stream", stop.code, segment.url, segment.paced)
            return "error"
        if stop.how == "rewind":
            account.show("stream", "rewind", segment.url)
            return "rewind"
        last = max(account.seen(), key=lambda one: one.place, default=None)
        if last is None or last.kind not in ("finish", "end"):
            account.show("stream", "done_without_end", segment.url)
            return "error"
        return "end"


def code_of(response: httpx.Response) -> str:
    """The error code of an answer; for one that is no error object of the service, its status."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"status_{response.status_code}"


def failure_of(error: httpx.HTTPError) -> str:
    """What a client can tell of a connection that failed."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "unreachable"
    return "silent" if isinstance(error, httpx.TimeoutException) else "cut"
