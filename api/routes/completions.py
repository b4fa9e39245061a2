"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Request
from fastapi.responses import Response

from api import streams
from api.admission import admit, idempotency_key
from api.deps import PartsDep, RequestIdDep, TenantDep
from api.intake import completion_spec
from api.schemas import CompletionRequest

router = APIRouter(tags=["completions"])


@router.post("/v1/completions")
async def create(
    request: Request,
    body: Annotated[CompletionRequest, Body()],
    parts: PartsDep,
    request_id: RequestIdDep,
    tenant: TenantDep,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """Continue a text, in one piece or as a stream."""
    key = idempotency_key(idempotency)
    admitted = await admit(parts, tenant, body, key, waits=False)
    spec = await completion_spec(body, admitted, parts.settings, request_id)
    return await streams.answer(parts, request, body, spec, admitted, key)
