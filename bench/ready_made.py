"""What `bench/relay.py` compares with: applications that stream bytes which are ready, and do nothing else.

`GET /sse` is sse-starlette's `EventSourceResponse`, `GET /plain` Starlette's `StreamingResponse`; each yields one event
to every stream at each `POST /tick`. No queue, no JSON, no look at the clock: less is no stream of tokens any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from sse_starlette.sse import EventSourceResponse

from api.chunks import ChatChunks
from api.frames import frame
from tasks.events import Delta, EntryId
from tasks.jobs import JobSpec, new_id
from tasks.sampling import Sampling

app = FastAPI()


class Ticks:
    """Lets all streams go on at once."""

    def __init__(self) -> None:
        self.next: asyncio.Future[None] = asyncio.Future()

    def tick(self) -> None:
        """Now."""
        due, self.next = self.next, asyncio.Future()
        due.set_result(None)


def _ready_made(text: str) -> bytes:
    """A chunk as Penstock sends it."""
    spec = JobSpec(new_id("chat"), "chat", "fake", ((1,),), Sampling(16, 1))
    return ChatChunks(spec, 1_700_000_000).frames(EntryId(1_000, 100), Delta(0, 0, (5,), text))


async def _stream(ticks: Ticks, count: int, text: str) -> AsyncIterator[bytes]:
    data = _ready_made(text)
    yield frame({"ready": True})
    for _ in range(count):
        await ticks.next
        yield data
    yield b"data: [DONE]\n\n"


def _ticks() -> Ticks:
    if not hasattr(app.state, "ticks"):
        app.state.ticks = Ticks()
    made: Ticks = app.state.ticks
    return made


@app.get("/")
async def root() -> dict[str, str]:
    """Answers."""
    return {}


@app.post("/tick")
async def tick() -> dict[str, str]:
    """One event for everybody."""
    _ticks().tick()
    return {}


@app.get("/sse")
async def sse(count: int, text: str) -> Response:
    """By sse-starlette, with the time-out of sends that a server needs."""
    return EventSourceResponse(_stream(_ticks(), count, text), ping=0, send_timeout=30)


@app.get("/plain")
async def plain(count: int, text: str) -> Response:
    """By Starlette."""
    return StreamingResponse(_stream(_ticks(), count, text), media_type="text/event-stream")
