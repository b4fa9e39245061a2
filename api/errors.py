"""Errors as clients see them: one status for every code, and OpenAI's error object for every failure.

`TABLE` is total over `ErrorCode`; a test proves it. Nothing else in the API chooses a status.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from api.rates import rate_headers
from tasks.errors import ErrorCode, PenstockError, RateLimited, TryLater

log = logging.getLogger("penstock.api")


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP status, and whether a client that retries by itself should do so."""

    http: int
    retry: bool = False


#: `retry` is what the SDK is told by x-should-retry: it would repeat every 409 and 5xx, a poisoned job included.
TABLE: Final[Mapping[ErrorCode, Status]] = {
    ErrorCode.INVALID_REQUEST: Status(400),
    ErrorCode.INVALID_JSON: Status(400),
    ErrorCode.BODY_TOO_LARGE: Status(413),
    ErrorCode.UNSUPPORTED_PARAMETER: Status(400),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: Status(400),
    ErrorCode.MODEL_NOT_FOUND: Status(404),
    ErrorCode.NO_CHAT_TEMPLATE: Status(400),
    ErrorCode.JOB_NOT_FOUND: Status(404),
    ErrorCode.JOB_NOT_FINISHED: Status(409),
    ErrorCode.JOB_NOT_CANCELLABLE: Status(409),
    ErrorCode.NOT_FOUND: Status(404),
    ErrorCode.METHOD_NOT_ALLOWED: Status(405),
    ErrorCode.INVALID_EVENT_ID: Status(400),
    ErrorCode.UNKNOWN_EVENT_ID: Status(409),
    ErrorCode.IDEMPOTENCY_CONFLICT: Status(422),
    ErrorCode.QUEUE_FULL: Status(429, retry=True),
    ErrorCode.RATE_LIMIT_EXCEEDED: Status(429, retry=True),
    ErrorCode.PRIORITY_NOT_ALLOWED: Status(403),
    ErrorCode.NO_WORKER: Status(503, retry=True),
    ErrorCode.MODEL_FAILED_TO_LOAD: Status(503),
    ErrorCode.STORE_UNAVAILABLE: Status(503, retry=True),
    ErrorCode.SERVER_SHUTDOWN: Status(503, retry=True),
    ErrorCode.INTERNAL: Status(500),
    ErrorCode.WORKER_LOST: Status(503, retry=True),
    ErrorCode.POISONED: Status(500),
    ErrorCode.DEADLINE_EXCEEDED: Status(504),
    ErrorCode.OUT_OF_MEMORY: Status(500),
    ErrorCode.ENGINE_ERROR: Status(500),
    ErrorCode.CANCELLED: Status(409),
    ErrorCode.HISTORY_LOST: Status(500, retry=True),
    ErrorCode.JOB_LOST: Status(500, retry=True),
    ErrorCode.EVENTS_EXPIRED: Status(410),
}


def status_of(code: ErrorCode) -> int:
    """The HTTP status of a code."""
    return TABLE[code].http


def error_type(code: ErrorCode) -> str:
    """OpenAI's `type` of a code."""
    status = status_of(code)
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_object(error: PenstockError) -> dict[str, Any]:
    """OpenAI's error object: all four fields, always."""
    code = error.code
    return {"error": {"message": error.message, "type": error_type(code), "param": error.param, "code": str(code)}}


def code_of(text: str | None) -> ErrorCode:
    """The code that a job's record carries; one that this version does not know is an internal error."""
    try:
        return ErrorCode(text or "")
    except ValueError:
        return ErrorCode.INTERNAL


def response_of(error: PenstockError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole answer to a refused or failed request."""
    status = TABLE[error.code]
    extra = dict(headers or {}) | (rate_headers(error.rates) if isinstance(error, RateLimited) else {})
    if status.http in (429, 503):
        seconds = error.retry_after_s if isinstance(error, TryLater) else 1
        extra["retry-after"] = str(min(120, max(1, seconds)))
    if status.http >= 500 or status.http in (409, 429):
        extra["x-should-retry"] = "true" if status.retry else "false"
    return JSONResponse(error_object(error), status.http, extra)


def _refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PenstockError)
    if status_of(error.code) >= 500:
        log.warning("%s %s: %s: %s", request.method, request.url.path, error.code, error.message)
    return _refused(request, error)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _refused(request, from_validation(error.errors()))


def _refused(request: Request, error: PenstockError) -> JSONResponse:
    request.app.state.parts.metrics.refused.labels(str(error.code)).inc()
    return response_of(error)


def _http(request: Request, error: Exception) -> JSONResponse:
    """Errors that the framework raises itself: an unknown path or method, a body that is no JSON text."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            return response_of(PenstockError(f"there is nothing at {path}", code=ErrorCode.NOT_FOUND))
        case 405:
            text = f"{request.method} is not allowed at {path}"
            return response_of(PenstockError(text, code=ErrorCode.METHOD_NOT_ALLOWED), error.headers)
        case 413:
            return response_of(PenstockError(str(error.detail), code=ErrorCode.BODY_TOO_LARGE))
    text = "the body could not be read as JSON"
    if isinstance(error.__cause__, UnicodeDecodeError):
        text = f"the body is not valid UTF-8: bad byte at position {error.__cause__.start}"
    elif isinstance(error.__cause__, RecursionError):
        text = "the body is nested too deeply"
    return response_of(PenstockError(text, code=ErrorCode.INVALID_JSON))


def _internal(request: Request, error: Exception) -> JSONResponse:
    """Answered outside of `api.middleware`, so the request's id must be put in here."""
    request_id = str(request.state.request_id)
    log.error("request %s met an internal error", request_id)
    internal = PenstockError("an internal error; the server's log has the details", code=ErrorCode.INTERNAL)
    return response_of(internal, {"x-request-id": request_id})


def from_validation(errors: Sequence[Any]) -> PenstockError:
    """The first complaint of pydantic, with the field's path as clients write it: messages[0].content."""
    first = _telling(errors)
    where, kind = first["loc"], first["type"]
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "invalid")
        return PenstockError(f"invalid JSON at position {where[-1]}: {reason}", code=ErrorCode.INVALID_JSON)
    param = _path(where)
    if kind == "extra_forbidden":
        return PenstockError(f"unknown field {param!r}", param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    if param is None:
        text = "the body must be a JSON object, sent with Content-Type: application/json"
        return PenstockError(text, code=ErrorCode.INVALID_REQUEST)
    got = "" if kind == "missing" else f" (got {_short(first.get('input'))})"
    return PenstockError(
        f"{param}: {first['msg'].removeprefix('Value error, ')}{got}", param=param, code=ErrorCode.INVALID_REQUEST
    )


#: Parts of pydantic's location that are no part of the client's JSON: where the value came from, which type was tried.
_NOT_A_FIELD = {
    *("body", "query", "path", "header", "chat", "completion"),
    *("str", "[key]", "TextPart", "NamedTool", "constrained-str"),
}
_NO_FIELDS = ("list[", "literal[", "function-", "tagged-", "constrained-")


def _telling(errors: Sequence[Any]) -> Any:
    """Of a field with several forms pydantic tells what is wrong with each; the one that got furthest was meant."""
    where = errors[0]["loc"]
    if "str" not in where:
        return errors[0]
    field = where[: where.index("str")]
    return max((error for error in errors if error["loc"][: len(field)] == field), key=lambda error: len(error["loc"]))


def _path(where: Sequence[Any]) -> str | None:
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _NOT_A_FIELD and not part.startswith(_NO_FIELDS):
            text += f".{part}" if text else part
    return text or None


def _short(value: Any) -> str:
    """A value in an error message: enough to recognise it, never a whole prompt."""
    if isinstance(value, str | list | dict):
        text = json.dumps(value, ensure_ascii=True, default=str)
        return text if len(text) <= 40 else f"a {type(value).__name__} of length {len(value)}"
    return repr(value)[:40]


def install(app: FastAPI) -> None:
    """Every failure of this app becomes an OpenAI error object."""
    app.add_exception_handler(PenstockError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)
