"""The parts of one API process, and how routes get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.closing import Closing
from api.metrics import Metrics
from api.pool import Pool
from api.relay import Relay
from tasks.catalog import Catalog
from tasks.settings import Settings
from tasks.store import JobStore
from tasks.tenants import Tenant, Tenants


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a route may need; made once per process by `api.app`."""

    settings: Settings
    catalog: Catalog
    tenants: Tenants
    store: JobStore
    pool: Pool
    relay: Relay
    metrics: Metrics
    closing: Closing


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


def _tenant(request: Request) -> Tenant:
    return _parts(request).tenants.of(request.headers.get("authorization", ""))


PartsDep = Annotated[Parts, Depends(_parts)]
RequestIdDep = Annotated[str, Depends(_request_id)]
TenantDep = Annotated[Tenant, Depends(_tenant)]
