"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from api.deps import Parts, PartsDep
from tasks.errors import ErrorCode, Refused

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def index(parts: PartsDep) -> dict[str, Any]:
    """All models of models.toml, ready or not."""
    return {"object": "list", "data": [_model(parts, name) for name in parts.catalog.entries]}


@router.get("/{model:path}")
async def retrieve(model: str, parts: PartsDep) -> dict[str, Any]:
    """One model; names may hold slashes."""
    if parts.catalog.get(model) is None:
        text = f"the model {model[:128]!r} does not exist; GET /v1/models lists those that do"
        raise Refused(text, param="model", code=ErrorCode.MODEL_NOT_FOUND)
    return _model(parts, model)


def _model(parts: Parts, name: str) -> dict[str, Any]:
    entry, view = parts.catalog.entries[name], parts.pool.models[name]
    profile = view.prompts.profile if view.prompts else None
    return {
        "id": name,
        "object": "model",
        "created": int(min((card.started for card in view.cards), default=0)),
        "owned_by": "penstock",
        "root": name if Path(entry.path).is_absolute() else entry.path or name,
        "max_model_len": profile.max_model_len if profile else entry.max_model_len,
        "ready": view.is_ready,
        "chat": bool(profile and profile.chat_template),
        "error": next((card.error for card in view.cards if card.state == "failed"), None),
    }
