"""A reader and a renderer as a stream of server-sent events that never falls silent and never ends without a word."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.closing import Closing
from api.frames import Frames
from api.reader import HistoryLost, Reader
from tasks.errors import ErrorCode, PenstockError

log = logging.getLogger("penstock.sse")

#: A client that does not take a piece within this time is gone.
SEND_TIMEOUT_S = 30.0
#: What is sent at once, unless a single entry is larger: a slow client must be able to take it within the time.
PIECE_BYTES = 32_768
#: How long a stream may take to say good-bye when the server goes away.
FAREWELL_S = 3.0
#: How often a waiting client may hear its place in line, and how often a stream looks whether the server goes away.
TICK_S = 1.0

Eta = Callable[[int], float | None]


class EventStream(EventSourceResponse):
    """The response. However it ends, and even if it never began, `leave` is called once it is over."""

    def __init__(self, frames: AsyncIterator[bytes], leave: Callable[[], None], headers: Mapping[str, str]) -> None:
        super().__init__(
            frames,
            headers={"Cache-Control": "no-cache", **headers},
            ping=0,
            send_timeout=SEND_TIMEOUT_S,
            shutdown_grace_period=FAREWELL_S,
        )
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a client took nothing for %.0f s: its stream was ended", SEND_TIMEOUT_S)
        finally:
            self._leave()


class Narrator:
    """Turns what a reader yields into frames. `rewinds`: after lost history the stream starts over, saying so."""

    def __init__(
        self, reader: Reader, render: Frames, eta: Eta, keepalive_s: float, closing: Closing, rewinds: bool = False
    ) -> None:
        self._reader = reader
        self._render = render
        self._eta = eta
        self._keepalive_s = keepalive_s
        self._closing = closing
        self._rewinds = rewinds
        self._spoke_at = time.monotonic()
        self._place = ""
        self._begun = False

    async def frames(self) -> AsyncIterator[bytes]:
        """Everything up to the terminal entry, or an error; whatever happens, the last frame says so."""
        try:
            async for data in self._stream():
                self._spoke_at = time.monotonic()
                yield data
        except PenstockError as error:
            yield self._render.error(error) + self._render.close()
        except Exception:
            log.exception("a stream broke: job %s", self._reader.job_id)
            internal = PenstockError("an internal error; the server's log has the details", code=ErrorCode.INTERNAL)
            yield self._render.error(internal) + self._render.close()

    async def _stream(self) -> AsyncIterator[bytes]:
        if comment := self._place_in_line():
            yield comment
        while not self._reader.ended:
            if self._closing.is_set():
                raise PenstockError("the server is shutting down: try again", code=ErrorCode.SERVER_SHUTDOWN)
            try:
                items = await self._reader.next(min(TICK_S, self._silence_left()))
            except HistoryLost:
                if not self._rewinds:
                    raise
                self._reader.rewind()
                yield b"event: rewind\ndata: {}\n\n"
                continue
            said = False
            for data in _pieces([self._render.frames(at, entry) for at, entry in items]):
                self._begun = said = True
                yield data
            if not said and (data := self._place_in_line() or self._keep_alive()):
                yield data
        yield self._render.close()

    def _silence_left(self) -> float:
        return self._spoke_at + self._keepalive_s - time.monotonic()

    def _keep_alive(self) -> bytes:
        return self._comment("keep-alive") if self._silence_left() <= 0 else b""

    def _place_in_line(self) -> bytes:
        """A comment when the place in line has changed, or when it is time to say something again."""
        position = self._reader.position
        if position is None:
            self._place = ""
            return b""
        eta_s = self._eta(position)
        place = f"queued position={position}{'' if eta_s is None else f' eta_s={eta_s}'}"
        if place == self._place and self._silence_left() > 0:
            return b""
        self._place = place
        return self._comment(place)

    def _comment(self, text: str) -> bytes:
        """Once an id was sent, without the blank line: OpenAI's Python SDK takes that for an empty event and fails."""
        return f": {text}\n{'' if self._begun else chr(10)}".encode()


def _pieces(frames: list[bytes]) -> Iterator[bytes]:
    """The frames joined, whole ones, up to `PIECE_BYTES` at a time."""
    piece: list[bytes] = []
    size = 0
    for data in frames:
        if piece and size + len(data) > PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
        if data:
            piece.append(data)
            size += len(data)
    if piece:
        yield b"".join(piece)
