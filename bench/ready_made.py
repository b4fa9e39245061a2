"""What `bench/relay.py` and `bench/submits.py` compare with: applications that do the least that FastAPI can do.

`GET /sse` is sse-starlette's `EventSourceResponse`, `GET /plain` Starlette's `StreamingResponse`; each yields one event
to every stream at each `POST /tick`. No queue, no JSON, no look at the clock: less is no stream of tokens any more.
`POST /v1/jobs` validates a job as Penstock does, and answers as much as Penstock would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Body, FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from sse_starlette.sse import EventSourceResponse

from api.chunks import ChatChunks
from api.frames import frame
from api.schemas import JobRequest
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


@app.post("/v1/jobs")
async def submit(body: Annotated[JobRequest, Body()]) -> Response:
    """Validates, and is done."""
    usage = {"prompt_tokens": 40, "completion_tokens": 0, "total_tokens": 40}
    row = {
        "id": "job_" + "x" * 24,
        "object": "job",
        "state": "queued",
        "model": body.model,
        "created_at": 1_700_000_000,
    }
    more = {"queue": {"position": 1, "eta_s": None}, "usage": usage, "result": None, "error": None, "attempts": 0}
    return JSONResponse(row | more | {"priority": body.priority, "metadata": body.metadata}, 202)
