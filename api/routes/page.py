"""GET /: a small static page: the models, ready or not, and where everything is. GET /docs: the API, from its schema.

Nothing comes from elsewhere: the machine may have no network.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import PartsDep

router = APIRouter(include_in_schema=False)

_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": "default-src 'self'"}
_FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def _serve(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response((files("api") / "static" / name).read_bytes(), media_type=media_type, headers=_HEADERS)

    return serve


for path, (name, media_type) in _FILES.items():
    router.add_api_route(path, _serve(name, media_type), methods=["GET"])


@router.get("/page.json")
async def places(parts: PartsDep) -> dict[str, int]:
    """What the page cannot know by itself."""
    return {"flower_port": parts.settings.flower_port}
