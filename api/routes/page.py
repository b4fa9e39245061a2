"""GET /: a small static page: the models, ready or not, and where everything is."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from api.deps import PartsDep

router = APIRouter(include_in_schema=False)

_FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": "default-src 'self'"}


def _file(name: str) -> Response:
    return Response((files("api") / "static" / name).read_bytes(), media_type=_FILES[name], headers=_HEADERS)


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page.css")
async def style() -> Response:
    """Its style."""
    return _file("page.css")


@router.get("/page.js")
async def script() -> Response:
    """Its script."""
    return _file("page.js")


@router.get("/page.json")
async def places(parts: PartsDep) -> dict[str, int]:
    """What the page cannot know by itself."""
    return {"flower_port": parts.settings.flower_port}
