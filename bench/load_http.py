"""One streamed request over a TCP connection of its own, read with as little work as the figures allow.

A general HTTP client costs several times this, and the client must not be what is measured: it shares the processors.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

#: The client stopped waiting for the rest of an answer.
GAVE_UP = "client gave up"


@dataclass
class Record:
    """What became of one request. Times are seconds from the start of the load; -1: never.

    `error` is empty if the answer came to its end. `chunks`: when each piece of text came.
    """

    tag: str
    intended: float
    sent: float = -1.0
    head: float = -1.0
    end: float = -1.0
    chunks: list[float] = field(default_factory=list)
    tokens: int = 0
    status: int = 0
    error: str = ""
    finish: str = ""
    eta_s: float = -1.0
    retry_after: str = ""


class Exchange(asyncio.Protocol):
    """Sends one request and fills its record; `done` is set when nothing more will come."""

    def __init__(self, request: bytes, record: Record, begin: float, done: asyncio.Future[None]) -> None:
        self._request = request
        self._record = record
        self._begin = begin
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._complete = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass of it
        self._record.sent = self._now()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._record.error = f"bad HTTP: {error}"
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        record = self._record
        if not record.error and not (self._complete and record.finish):
            record.error = "cut off" if record.status == 200 else "closed without an answer"
        if record.end < 0:
            record.end = self._now()
        if not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        """End the connection; `connection_lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._record.retry_after = value.decode()
        elif name.lower() == b"x-penstock-eta-s":
            self._record.eta_s = float(value)

    def on_headers_complete(self) -> None:
        self._record.head = self._now()
        self._record.status = self._parser.get_status_code()
        if self._record.status != 200:
            self._record.error = f"HTTP {self._record.status}"

    def on_body(self, body: bytes) -> None:
        if self._record.status != 200:
            return
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def on_message_complete(self) -> None:
        self._complete = True
        self._record.end = self._now()
        self.close()

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":  # not every server says it: an answer is complete with its finish reason
            return
        event = json.loads(data)
        record = self._record
        if "error" in event:
            record.error = f"error in the stream: {_code(event['error'])}"
        if usage := event.get("usage"):
            record.tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            if choice.get("delta", {}).get("content"):
                record.chunks.append(self._now())
            record.finish = choice.get("finish_reason") or record.finish

    def _now(self) -> float:
        return time.monotonic() - self._begin


def _code(error: Any) -> str:
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) else "unknown"


def request_bytes(host: str, port: int, path: str, body: dict[str, Any]) -> bytes:
    """A whole POST."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def ask(host: str, port: int, request: bytes, record: Record, begin: float, patience_s: float) -> Record:
    """Send one request and read its answer to the end, for at most `patience_s` from its intended time."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    exchange = Exchange(request, record, begin, done)
    try:
        async with asyncio.timeout(begin + record.intended + patience_s - time.monotonic()):
            await loop.create_connection(lambda: exchange, host, port)
            await done
    except TimeoutError:
        record.error = GAVE_UP if record.head >= 0 else "no answer in time"
        record.end = time.monotonic() - begin
        exchange.close()
    except OSError as error:
        record.error = f"no connection: {error.strerror}"
        record.end = time.monotonic() - begin
    return record
