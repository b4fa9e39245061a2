"""Clients that cost little: one protocol object per connection, which keeps what it gets and reads it when all is over."""

from __future__ import annotations

import asyncio
import json
import resource
from typing import cast

#: Connections that are being opened at a time.
AT_ONCE = 200


class Stream(asyncio.Protocol):
    """One request and its answer. `begun`: the first piece of the body is here; `done`: OpenAI's end mark is."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.pieces = 0
        self._request = request
        self._data: list[bytes] = []
        self._tail = b""
        self._expected: tuple[bytes, int, asyncio.Future[None]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self._data.append(data)
        self._tail = (self._tail + data)[-40:]
        if not self.begun.done() and (b"\ndata: " in data or b"\r\n\r\n{" in data or b"{}" in data):
            self.begun.set_result(None)
        if b"data: [DONE]" in self._tail and not self.done.done():
            self.done.set_result(None)
            self.close()
        if self._expected:
            self._look()

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody must wait for ever."""
        waits = [self.begun, self.done, *([self._expected[2]] if self._expected else [])]
        for future in waits:
            if not future.done():
                future.set_exception(ConnectionError(f"the server closed a stream: {self._data[-1:]!r}"))
                future.exception()

    async def have(self, text: str, count: int) -> None:
        """Until the text was received so often."""
        self._expected = text.encode(), count, asyncio.get_running_loop().create_future()
        self._look()
        await self._expected[2]

    def _look(self) -> None:
        assert self._expected
        text, count, future = self._expected
        if not future.done() and b"".join(self._data).count(text) >= count:
            future.set_result(None)

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.close()

    def text(self) -> tuple[str, list[int]]:
        """The whole text and the numbers of the ids, in order; `pieces` then counts the events with text."""
        ids: list[int] = []
        texts: list[str] = []
        for line in _dechunked(b"".join(self._data).partition(b"\r\n\r\n")[2]).split(b"\n"):
            if line.startswith(b"id: "):
                ids.append(int(line.rpartition(b"-")[2]))
            elif line.startswith(b'data: {"id"'):
                content = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if content:
                    texts.append(content)
        self.pieces = len(texts)
        ready_made = len(set(ids)) == 1  # the same bytes every time
        return "".join(texts), [] if ready_made else ids


def _dechunked(data: bytes) -> bytes:
    parts, at = [], 0
    while (end := data.find(b"\r\n", at)) > 0:
        size = int(data[at:end], 16)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


class Caller:
    """One connection that stays open, for one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._request = request

    @classmethod
    async def connect(cls, port: int, path: str, body: bytes) -> Caller:
        """To this machine."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return cls(reader, writer, _request(f"POST {path}", body.decode()))

    async def call(self, status: int) -> None:
        """Ask, and read the answer. Exits unless it has this status."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(size)
        if not head.startswith(f"HTTP/1.1 {status} ".encode()):
            raise SystemExit(f"{head!r}{body!r}")

    def close(self) -> None:
        """Leave."""
        self._writer.close()


def _request(target: str, body: str) -> bytes:
    lines = (f"{target} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", body)).encode()


def allow_many_connections() -> None:
    """For this process and those that it starts: the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def open_all(port: int, target: str, body: str, count: int) -> list[Stream]:
    """So many connections, each with this request."""
    request = _request(target, body)
    loop = asyncio.get_running_loop()
    streams: list[Stream] = []
    while len(streams) < count:
        size = min(AT_ONCE, count - len(streams))
        made = await asyncio.gather(
            *(loop.create_connection(lambda: Stream(request), "127.0.0.1", port) for _ in range(size))
        )
        streams += [protocol for _, protocol in made]
    return streams
