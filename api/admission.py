"""Who may enter: everything that can be refused is refused here, before a job exists and before a stream begins.

A chat or completion needs a ready worker now. A job only needs to be rendered, so a model that was loaded once will do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from api.deps import Parts
from api.pool import ModelView
from api.prompts import Prompts
from api.schemas import GenerationRequest
from tasks.catalog import ModelEntry
from tasks.errors import ErrorCode, PenstockError, QueueFull, Refused
from tasks.jobs import BANDS, JobSpec, Priority
from tasks.store import Submitted
from tasks.tenants import Tenant

#: A refusal rests on knowledge at most this old.
FRESH_S = 0.1

_BARE_KEY = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,255}")
_QUOTED_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,255})"')


@dataclass(frozen=True, slots=True)
class Admitted:
    """A model that takes the request, and who asks."""

    tenant: Tenant
    priority: Priority
    entry: ModelEntry
    view: ModelView
    prompts: Prompts


async def admit(parts: Parts, tenant: Tenant, request: GenerationRequest, key: str, *, waits: bool) -> Admitted:
    """The model, if it takes a request now; `waits`: the job may wait for a worker. Raises `Refused` or `StoreDown`.

    Never refused for the pool's sake: a repeat, by its idempotency key, of what was accepted. `submit` finds the job.
    """
    model = request.model
    entry = parts.catalog.get(model)
    if entry is None:
        text = f"the model {model!r} does not exist; GET /v1/models lists those that do"
        raise Refused(text, param="model", code=ErrorCode.MODEL_NOT_FOUND)
    priority = _priority(request, tenant, "normal" if waits else "interactive")
    view = parts.pool.models[model]
    if _refusal(entry, view, priority, waits):
        await parts.pool.refresh(FRESH_S)
        refusal = _refusal(entry, view, priority, waits)
        # Asked only now, so that nobody else pays for it. Without a profile there is no prompt to submit.
        if refusal and not (key and await parts.store.knows(tenant.name, key) and view.prompts):
            raise refusal
    assert view.prompts is not None
    return Admitted(tenant, priority, entry, view, view.prompts)


async def place(
    parts: Parts, admitted: Admitted, spec: JobSpec, *, key: str, body_hash: str, listed: bool = False, api: str = ""
) -> Submitted:
    """Put the job in line within the limits of its model and its tenant. Raises `Refused` or `StoreDown`."""
    try:
        return await parts.store.submit(
            spec,
            limit=admitted.entry.max_waiting,
            token_limit=admitted.entry.max_waiting_tokens,
            tenant=admitted.tenant,
            listed=listed,
            api=api,
            idempotency_key=key,
            body_hash=body_hash,
        )
    except QueueFull as full:
        raise QueueFull(full.message, admitted.view.retry_after_s()) from None


def _refusal(entry: ModelEntry, view: ModelView, priority: Priority, waits: bool) -> PenstockError | None:
    if view.prompts is None or not (waits or view.ready):
        return _reason(entry.name, view)
    before = view.line.before(BANDS[priority])
    if before < entry.max_waiting:
        return None
    return QueueFull(f"{before} jobs already wait for {entry.name}: try again later", view.retry_after_s())


def _priority(request: GenerationRequest, tenant: Tenant, usual: Priority) -> Priority:
    """What was asked for; else the usual one, if the tenant may have it."""
    if request.priority is None:
        return usual if tenant.may(usual) else tenant.max_priority
    if not tenant.may(request.priority):
        text = f"priority: {tenant.name} may ask for {tenant.max_priority} at most"
        raise Refused(text, param="priority", code=ErrorCode.PRIORITY_NOT_ALLOWED)
    return request.priority


def _reason(model: str, view: ModelView) -> Refused:
    failed = [card for card in view.cards if card.state == "failed"]
    if failed:
        text = f"the model {model} failed to load: {failed[0].error}"
        return Refused(text, param="model", code=ErrorCode.MODEL_FAILED_TO_LOAD)
    states = {card.state for card in view.cards}
    if "loading" in states:
        text = f"the model {model} is loading: try again soon"
    elif "draining" in states:
        text = f"the workers of {model} are draining: try again soon"
    elif "ready" in states:
        text = f"the workers of {model} have not said yet how to render its prompts: try again soon"
    else:
        text = f"no worker serves {model} at the moment: try again soon"
    return Refused(text, param="model", code=ErrorCode.NO_WORKER)


def idempotency_key(header: str | None) -> str:
    """The key of an Idempotency-Key header, quoted or bare; "" without one. Raises `Refused` for a malformed one."""
    if header is None:
        return ""
    quoted = _QUOTED_KEY.fullmatch(header)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if _BARE_KEY.fullmatch(header):
        return header
    raise Refused("an Idempotency-Key has 1 to 255 printable characters, quoted or bare", param="Idempotency-Key")
