"""The way of a generation through the API: submit and watch, then stream it or wait for it.

The reader exists before the job does, so that no entry can be missed, and it is let go of however the request ends: a
client that goes away cancels its job, unless the job is stored, has an idempotency key, or the server itself stops.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from api.admission import Admitted, place
from api.chunks import ChatChunks, CompletionChunks
from api.closing import end
from api.deps import Parts
from api.errors import response_of
from api.frames import Frames, Resumed
from api.intake import body_hash
from api.metrics import Stopwatch
from api.positions import Position
from api.rates import rate_headers
from api.reader import Reader
from api.render import answer_object, failure, fold
from api.schemas import GenerationRequest
from api.sse import EventStream, Narrator
from tasks.errors import ErrorCode, PenstockError, Refused, UnknownJob
from tasks.events import START, End, Entry, EntryId
from tasks.jobs import JobSpec, JobState
from tasks.rates import Rates
from tasks.store import Attached

log = logging.getLogger("penstock.api")

#: For logs only: the client has gone.
CLIENT_CLOSED = 499


@dataclass(frozen=True, slots=True)
class Watched:
    """A job with a reader of ours. `grace_s`: how long it may run on when nobody watches it any more.

    `complete`: the client already has the terminal entry.
    """

    spec: JobSpec
    created: int
    reader: Reader
    grace_s: float
    complete: bool = False
    rates: Rates | None = None


async def submit_watched(parts: Parts, spec: JobSpec, admitted: Admitted, key: str, body_hash: str) -> Watched:
    """Put a job in line and read it from its first entry on; or, by its idempotency key, an earlier one."""
    await parts.relay.subscribed()
    reader = parts.relay.open(spec.id, START)
    grace_s = parts.settings.orphan_s if key else 0.0
    try:
        submitted = await place(parts, admitted, spec, key=key, body_hash=body_hash, api=parts.relay.api)
    except Refused:
        parts.relay.leave(reader, 0)
        raise
    except BaseException:
        parts.relay.leave(reader, grace_s)  # it may be in line even so, if the answer was lost on its way back
        raise
    if submitted.existing:
        parts.relay.leave(reader, 0)
        return await watch(parts, submitted.id, Position())
    log.debug("request %s is job %s", spec.request_id, spec.id)
    reader.position = submitted.position
    return Watched(spec, submitted.created_ms // 1000, reader, grace_s, rates=submitted.rates)


async def watch(parts: Parts, job_id: str, position: Position, chunks: bool = False) -> Watched:
    """Read a job that exists. Raises `UnknownJob`, or `PenstockError` for a position that was never given out.

    `chunks`: for `chunks_of`, which reads calls of tools out of the whole answer, and leaves out what the client has.
    """
    found = await parts.store.get(job_id)
    if found is None:
        raise UnknownJob(f"there is no job {job_id}: never given out, or not kept any more")
    job, place = found
    await parts.relay.subscribed()
    after = START if chunks and job.spec.tool_format else position.after
    reader = parts.relay.open(job_id, after)
    complete = False
    try:
        attached = await reader.attach()
        if position.after != START:
            complete = isinstance(await _entry_at(parts, job_id, position, attached), End)
    except BaseException:
        parts.relay.leave(reader, parts.settings.orphan_s)
        raise
    reader.position = place
    return Watched(job.spec, job.created // 1000, reader, parts.settings.orphan_s, complete)


async def _entry_at(parts: Parts, job_id: str, position: Position, attached: Attached | None) -> Entry:
    """The entry that a client says it has. Raises if it was never given out, or is not kept any more.

    A Redis that lost its last writes may have lost it: its worker is told at the next renewal, and sends it again.
    """
    at = position.after
    lost = attached is not None and not attached.state.terminal and at.fence == attached.last.fence
    deadline = time.monotonic() + (parts.settings.lease_s if lost else 0.0)
    while True:
        page = await parts.store.read(job_id, at, 1)
        if page and page[0][0] == at:
            return page[0][1]
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(0.2)
    if attached is not None and attached.state.terminal and not await parts.store.read(job_id, START, 1):
        raise PenstockError("the job ended, and its events are not kept any more", code=ErrorCode.EVENTS_EXPIRED)
    text = f"{position.name}: the event id {at} was never given out for this job"
    raise PenstockError(text, param=position.name, code=ErrorCode.UNKNOWN_EVENT_ID)


def chunks_of(watched: Watched, after: EntryId = START) -> Frames:
    """The renderer of a job's own shape, for a client that has everything up to `after`."""
    if watched.spec.tool_format:
        return Resumed(ChatChunks(watched.spec, watched.created), after)
    if watched.spec.kind == "chat":
        return ChatChunks(watched.spec, watched.created, resumed=after != START)
    return CompletionChunks(watched.spec, watched.created)


async def answer(
    parts: Parts, request: Request, body: GenerationRequest, spec: JobSpec, admitted: Admitted, key: str
) -> Response:
    """Submit a checked request and answer it, in one piece or as a stream."""
    watched = await submit_watched(parts, spec, admitted, key, body_hash(spec.kind, body) if key else "-")
    stopwatch = parts.metrics.watch(watched.spec)
    if body.stream:
        return stream(parts, watched, chunks_of(watched), stopwatch)
    return await whole(parts, watched, request, stopwatch)


def stream(
    parts: Parts, watched: Watched, render: Frames, stopwatch: Stopwatch | None = None, rewinds: bool = False
) -> EventStream:
    """The job as server-sent events."""
    eta = partial(parts.pool.eta_s, watched.spec)
    keepalive_s = parts.settings.keepalive_s
    narrator = Narrator(watched.reader, render, eta, keepalive_s, parts.closing, rewinds, stopwatch)
    return EventStream(narrator, lambda: leave(parts, watched), job_headers(parts, watched))


async def whole(parts: Parts, watched: Watched, request: Request, stopwatch: Stopwatch) -> Response:
    """The job's answer in one piece, once it has ended; a client that leaves before lets go of it."""
    headers = job_headers(parts, watched)
    reading = asyncio.create_task(_read_to_end(watched.reader, stopwatch))
    others = [asyncio.create_task(_disconnected(request)), asyncio.create_task(parts.closing.wait())]
    try:
        await asyncio.wait([reading, *others], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            if others[0].done():
                return Response(status_code=CLIENT_CLOSED)
            error = PenstockError("the server is shutting down: try again", code=ErrorCode.SERVER_SHUTDOWN)
            return response_of(error, headers)
        return _answer(watched, reading.result(), headers)
    except PenstockError as error:
        return response_of(error, headers)
    finally:
        await end(reading, *others)
        leave(parts, watched)


def _answer(watched: Watched, entries: list[Entry], headers: dict[str, str]) -> Response:
    answer = fold(watched.spec, entries)
    assert answer.end is not None
    if answer.end.state != JobState.SUCCEEDED:
        raise failure(answer.end.code, answer.end.message, answer.end.state)
    return JSONResponse(answer_object(watched.spec, watched.created, answer), headers=headers)


async def _read_to_end(reader: Reader, stopwatch: Stopwatch) -> list[Entry]:
    entries: list[Entry] = []
    while not (entries and isinstance(entries[-1], End)):
        items = await reader.next(60.0)
        stopwatch.see(items)
        entries += [entry for _, entry in items]
    return entries


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def leave(parts: Parts, watched: Watched) -> None:
    """A stop of the server is not the client's wish: then the job may be taken up again for a while."""
    grace_s = parts.settings.orphan_s if parts.closing.is_set() else watched.grace_s
    parts.relay.leave(watched.reader, grace_s)


def job_headers(parts: Parts, watched: Watched) -> dict[str, str]:
    """The job's id, its place in line if it has one, and what is left of its tenant's rates."""
    return queue_headers(parts, watched.spec, watched.reader.position) | rate_headers(watched.rates)


def queue_headers(parts: Parts, spec: JobSpec, position: int | None) -> dict[str, str]:
    """As `job_headers`, for a job without a reader."""
    headers: dict[str, Any] = {"x-penstock-job-id": spec.id}
    if position is not None:
        headers["x-penstock-queue-position"] = position
        eta_s = parts.pool.eta_s(spec, position)
        if eta_s is not None:
            headers["x-penstock-eta-s"] = eta_s
    return {name: str(value) for name, value in headers.items()}
