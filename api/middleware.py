"""Pure ASGI middleware: a request id on every answer, a limit on every body.

No BaseHTTPMiddleware: it breaks disconnects and costs time on each event of a stream.
"""

from __future__ import annotations

import asyncio
import re
import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import response_of
from tasks.errors import ErrorCode, PenstockError

_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: A client that is still sending sees its connection reset instead of our 413, so we read on: this much, this long.
DRAIN_BYTES = 64_000_000
DRAIN_S = 10.0


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for given, value in scope["headers"] if given == name), "")


class RequestId:
    """Takes the caller's x-request-id or makes one; `scope["state"]["request_id"]` holds it, every answer shows it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = _header(scope, b"x-request-id")
        request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses a body over the limit with 413: by its declared length at once, else when it grows over."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        text = f"the body is larger than {self.limit} bytes"
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self.limit:
            await _drain(receive)
            refused = response_of(PenstockError(text, code=ErrorCode.BODY_TOO_LARGE))
            return await refused(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                await _drain(receive)
                raise HTTPException(413, text)
            return message

        await self.app(scope, counted, send)


async def _drain(receive: Receive) -> None:
    """Read what the client still sends, within bounds, and forget it."""
    seen = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while seen < DRAIN_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
