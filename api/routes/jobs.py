"""/v1/jobs: submit, poll, watch, cancel, list. Any job's id works here, whatever route gave it out."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from api import streams
from api.admission import admit, idempotency_key, place
from api.chunks import JobEvents
from api.deps import Parts, PartsDep, TenantDep, caller_of
from api.intake import body_hash, chat_spec, completion_spec
from api.positions import position_of
from api.rates import rate_headers
from api.render import fold, job_object
from api.schemas import ChatJob, JobRequest
from tasks.errors import ErrorCode, PenstockError, Refused, UnknownJob
from tasks.jobs import Job, JobSpec, JobState, is_id

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

log = logging.getLogger("penstock.api")


@router.post("", status_code=202)
async def create(
    request: Request,
    body: Annotated[JobRequest, Body()],
) -> Response:
    """Put a chat or completion request in line and return at once; the job outlives its client."""
    parts, tenant, request_id = caller_of(request)
    key = idempotency_key(request.headers.get("Idempotency-Key"))
    admitted = await admit(parts, tenant, body, key, waits=True)
    if isinstance(body, ChatJob):
        spec = await chat_spec(body, admitted, parts.settings, request_id)
    else:
        spec = await completion_spec(body, admitted, parts.settings, request_id)
    submitted = await place(
        parts, admitted, spec, key=key, body_hash=body_hash("job", body) if key else "-", listed=True
    )
    if submitted.existing:
        job, position = await _get(parts, submitted.id)
    else:
        log.debug("request %s is job %s", request_id, spec.id)
        parts.metrics.prompt_tokens.labels(spec.model).inc(spec.prompt_tokens)
        job, position = _accepted(spec, submitted.created_ms), submitted.position
    headers = {"location": f"/v1/jobs/{job.id}", **streams.queue_headers(parts, job.spec, position)}
    headers |= rate_headers(submitted.rates)
    return JSONResponse(await _view(parts, job, position), 202, headers)


def _accepted(spec: JobSpec, created_ms: int) -> Job:
    """The job as it was submitted. Asking Redis again could fail, and a refusal would be repeated by the client."""
    numbers = dict.fromkeys(("fence", "attempt", "seq", "tokens", "strikes", "losses"), 0)
    nothing = dict.fromkeys(("started", "finished", "code", "message", "worker"))
    return Job(spec=spec, state=JobState.QUEUED, cancel=False, created=created_ms, **numbers, **nothing)  # type: ignore[arg-type]


@router.get("")
async def index(
    parts: PartsDep,
    tenant: TenantDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """Submitted jobs, newest first, without their texts and results."""
    if after is not None and not is_id(after):
        raise Refused("after: this is no job id", param="after")
    ids = await parts.store.jobs(tenant.name, limit + 1, after)
    found = [await parts.store.get(job_id) for job_id in ids[:limit]]
    rows = [
        job_object(job, position, parts.pool.eta_s(job.spec, position), None) for job, position in filter(None, found)
    ]
    return {
        "object": "list",
        "data": rows,
        "first_id": rows[0]["id"] if rows else None,
        "last_id": ids[:limit][-1] if ids else None,  # not the last row's: jobs that are not kept any more have none
        "has_more": len(ids) > limit,
    }


@router.get("/{job_id}")
async def retrieve(job_id: str, parts: PartsDep) -> dict[str, Any]:
    """Where a job stands: its place in line, its text so far, its result."""
    return await _view(parts, *await _get(parts, job_id))


@router.get("/{job_id}/events")
async def events(
    job_id: str,
    parts: PartsDep,
    starting_after: Annotated[str | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The job's log as events `started`, `delta`, `choice_end`, `end`; resumes after the last id that was received."""
    position = position_of(last_event_id, starting_after)
    _check_id(job_id)
    watched = await streams.watch(parts, job_id, position)
    if watched.complete:
        streams.leave(parts, watched)
        return Response(status_code=204)  # what tells a browser not to reconnect
    return streams.stream(parts, watched, JobEvents(watched.spec), rewinds=True)


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, parts: PartsDep) -> dict[str, Any]:
    """Cancel a job: at once in line, within a step while it runs. Again is no error; after another end it is."""
    _check_id(job_id)
    outcome = await parts.store.cancel(job_id)
    job, position = await _get(parts, job_id)
    if outcome.startswith("already") and job.state is not JobState.CANCELLED:
        raise PenstockError(f"the job has already {job.state}", code=ErrorCode.JOB_NOT_CANCELLABLE)
    return await _view(parts, job, position)


def _check_id(job_id: str) -> None:
    if not is_id(job_id):
        text = f"{job_id[:64]!r} is no job id: one looks like job_ and 24 letters and digits"
        raise UnknownJob(text, param="job_id")


async def _get(parts: Parts, job_id: str) -> tuple[Job, int | None]:
    _check_id(job_id)
    found = await parts.store.get(job_id)
    if found is None:
        raise UnknownJob(f"there is no job {job_id}: never given out, or not kept any more", param="job_id")
    return found


async def _view(parts: Parts, job: Job, position: int | None) -> dict[str, Any]:
    answer = fold(job.spec, [entry for _, entry in await parts.store.read_all(job.id)] if job.seq else [])
    return job_object(job, position, parts.pool.eta_s(job.spec, position), answer)
