"""/healthz: the process lives. /readyz: Redis answers and every model has a worker. /metrics: Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.deps import PartsDep
from tasks.errors import StoreDown

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """200 as long as the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(parts: PartsDep) -> JSONResponse:
    """200 if Redis answers and each model has a ready worker, else 503 with what is missing."""
    try:
        await parts.store.ping()
        await parts.pool.refresh(0.1)
    except StoreDown as error:
        return JSONResponse({"status": "unavailable", "redis": error.message, "models": {}}, 503)
    models = {name: view.is_ready for name, view in parts.pool.models.items()}
    ready = all(models.values())
    return JSONResponse(
        {"status": "ready" if ready else "not ready", "redis": "ok", "models": models}, 200 if ready else 503
    )


@router.get("/metrics")
async def metrics(parts: PartsDep) -> Response:
    """Prometheus' text format."""
    return Response(parts.metrics.text(), media_type=CONTENT_TYPE_LATEST)
