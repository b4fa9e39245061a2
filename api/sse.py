"""A reader and a renderer as a stream of server-sent events that never falls silent and never ends without a word."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.closing import Closing, end
from api.frames import Frames, joined
from api.lost import HistoryLost
from api.metrics import Stopwatch
from api.reader import Item, Reader
from tasks.errors import ErrorCode, PenstockError
from tasks.events import Delta

log = logging.getLogger("penstock.sse")

#: A client that does not take a piece within this time is gone.
SEND_TIMEOUT_S = 30.0
#: What is sent at once, unless a single entry is larger: a slow client must be able to take it within the time.
PIECE_BYTES = 32_768

Eta = Callable[[int], float | None]
Say = Callable[[bytes], Awaitable[None]]
HEADERS = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """The response. However it ends, and even if it never began, `leave` is called once it is over."""

    media_type = "text/event-stream"

    def __init__(self, narrator: Narrator, leave: Callable[[], None], headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **headers})
        self._narrator = narrator
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        listening = asyncio.create_task(self._listen(receive))
        try:
            with _Patience(send) as patience:
                await patience.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._narrator.narrate(patience.say)
                await patience.send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._leave()
            await end(listening)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._narrator.client_left()


class _Patience:
    """Ends a stream whose client takes nothing: one timer for all of its sends, for a timeout of each costs too much."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._sends_since: float | None = None
        self._lost = False

    def __enter__(self) -> _Patience:
        self._timer = self._loop.call_later(SEND_TIMEOUT_S, self._look)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        self._timer.cancel()
        if not (self._lost and kind is asyncio.CancelledError and self._task and self._task.uncancel() == 0):
            return False
        log.info("a client took nothing for %.0f s: its stream was ended", SEND_TIMEOUT_S)
        return True

    async def send(self, message: Message) -> None:
        """As ASGI's."""
        self._sends_since = time.monotonic()
        await self._send(message)
        self._sends_since = None

    async def say(self, data: bytes) -> None:
        """A piece of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    def _look(self) -> None:
        since = self._sends_since
        left = SEND_TIMEOUT_S if since is None else since + SEND_TIMEOUT_S - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task is not None:
            self._lost = True
            self._task.cancel()


class Narrator:
    """Turns what a reader yields into frames. `rewinds`: after lost history the stream starts over, saying so."""

    def __init__(
        self,
        reader: Reader,
        render: Frames,
        eta: Eta,
        keepalive_s: float,
        closing: Closing,
        rewinds: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._reader = reader
        self._render = render
        self._eta = eta
        self._keepalive_s = keepalive_s
        self._closing = closing
        self._rewinds = rewinds
        self._stopwatch = stopwatch
        self._spoke_at = time.monotonic()
        self._place = ""
        self._begun = False
        self._alone = False

    def client_left(self) -> None:
        """Nobody takes the frames any more."""
        self._alone = True
        self._reader.wake()

    async def narrate(self, say: Say) -> None:
        """Everything up to the terminal entry, or an error; whatever happens, the last frame says so."""
        try:
            await self._tell(say)
        except PenstockError as error:
            await say(self._render.error(error) + self._render.close())
        except Exception:
            log.exception("a stream broke: job %s", self._reader.job_id)
            internal = PenstockError("an internal error; the server's log has the details", code=ErrorCode.INTERNAL)
            await say(self._render.error(internal) + self._render.close())

    async def _tell(self, say: Say) -> None:
        while not self._reader.ended and not self._alone:
            if self._closing.is_set():
                raise PenstockError("the server is shutting down: try again", code=ErrorCode.SERVER_SHUTDOWN)
            if comment := self._place_in_line() or self._keep_alive():
                await self._say(say, comment)
            try:
                items = await self._reader.next(self._silence_left())
            except HistoryLost:
                if not self._rewinds:
                    raise
                self._reader.rewind()
                await self._say(say, b"event: rewind\ndata: {}\n\n")
                continue
            await self._tell_all(say, items)
        if close := self._render.close():
            await say(close)

    async def _tell_all(self, say: Say, items: Sequence[Item]) -> None:
        if items and self._stopwatch is not None:
            self._stopwatch.see(items)
        for data in _pieces(self._frames(items)):
            self._begun = True
            await self._say(say, data)

    async def _say(self, say: Say, data: bytes) -> None:
        await say(data)
        self._spoke_at = time.monotonic()

    def _frames(self, items: Sequence[Item]) -> list[bytes]:
        """One frame per entry; for a client that is behind, fewer ones. Readers of the same job share them."""
        reader, render = self._reader, self._render
        if reader.behind and render.joins and len(items) > 1:
            return [render.frames(at, entry) for at, entry in joined(items)]
        shared = reader.shared if render.shape else None
        if shared is None:
            return [render.frames(at, entry) for at, entry in items]
        frames = []
        for at, entry in items:
            data = shared.get((render.shape, at)) if isinstance(entry, Delta) else None
            if data is None:
                data = render.frames(at, entry)
                if isinstance(entry, Delta):
                    shared[render.shape, at] = data
            frames.append(data)
        return frames

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
