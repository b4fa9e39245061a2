"""GET /v1/workers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from api.deps import PartsDep

router = APIRouter(tags=["workers"])


@router.get("/v1/workers")
async def index(parts: PartsDep) -> dict[str, Any]:
    """The workers that were heard of lately: model, GPUs, lanes, last heartbeat."""
    cards = await parts.store.workers()
    return {"object": "list", "data": [{"object": "worker", **asdict(card)} for card in cards]}
