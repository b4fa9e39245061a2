"""POST /v1/chat/completions; GET /v1/chat/completions/{id}: a stored answer, or its stream taken up again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from api import streams
from api.admission import admit, idempotency_key
from api.deps import PartsDep, RequestIdDep, TenantDep
from api.intake import chat_spec
from api.positions import position_of
from api.render import answer_object, failure, fold
from api.schemas import ChatRequest
from tasks.errors import ErrorCode, PenstockError, UnknownJob
from tasks.jobs import JobState, is_id

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create(
    request: Request,
    body: Annotated[ChatRequest, Body()],
    parts: PartsDep,
    request_id: RequestIdDep,
    tenant: TenantDep,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    key = idempotency_key(idempotency)
    admitted = await admit(parts, tenant, body, key, waits=False)
    spec = await chat_spec(body, admitted, parts.settings, request_id)
    return await streams.answer(parts, request, body, spec, admitted, key)


@router.get("/v1/chat/completions/{job_id}")
async def retrieve(
    job_id: str,
    parts: PartsDep,
    stream: bool = False,
    starting_after: Annotated[str | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """A stored answer; with `stream=true` its chunks, those after `Last-Event-ID` or `starting_after`."""
    position = position_of(last_event_id, starting_after)
    found = await parts.store.get(job_id) if is_id(job_id) else None
    if found is None or found[0].spec.kind != "chat":
        raise UnknownJob(f"there is no chat completion {job_id[:64]!r}: never given out, or not kept any more")
    job = found[0]
    if stream:
        watched = await streams.watch(parts, job_id, position, chunks=True)
        return streams.stream(parts, watched, streams.chunks_of(watched, position.after))
    if not job.state.terminal:
        text = f"{job_id} is {job.state}: take up its stream with ?stream=true, or ask /v1/jobs/{job_id}"
        raise PenstockError(text, code=ErrorCode.JOB_NOT_FINISHED)
    if job.state is not JobState.SUCCEEDED:
        raise failure(job.code, job.message, job.state)
    answer = fold(job.spec, [entry for _, entry in await parts.store.read_all(job_id)])
    if answer.end is None:
        raise PenstockError(f"the answer of {job_id} is not kept any more", code=ErrorCode.EVENTS_EXPIRED)
    return JSONResponse(answer_object(job.spec, job.created // 1000, answer))
