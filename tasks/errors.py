"""Every error code of Penstock, and the tree of exceptions that carry them.

    PenstockError
    ├── Refused            a request that was not accepted: nothing is left behind
    │   ├── TryLater       says when to come back
    │   │   ├── QueueFull      the model's line, or the tenant's part of it, is at its limit
    │   │   └── RateLimited    the tenant's rate of requests or tokens is used up
    │   ├── UnknownJob     no record: never given out, or its retention is over
    │   └── Conflict       an idempotency key that came with another body
    ├── BadConfig          settings or models.toml: names the key and the remedy
    └── StoreDown          Redis cannot be reached, or refuses writes
        └── StoreRefused   it refuses this call, not every call

HTTP statuses are not known here: `api.errors` maps every code to one, and a test proves that table complete.
"""

from __future__ import annotations

from enum import StrEnum

from tasks.rates import Rates


class ErrorCode(StrEnum):
    """Codes that clients see, in error objects and in failed jobs."""

    # requests that were not accepted
    INVALID_REQUEST = "invalid_request"
    INVALID_JSON = "invalid_json"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    MODEL_NOT_FOUND = "model_not_found"
    NO_CHAT_TEMPLATE = "no_chat_template"
    JOB_NOT_FOUND = "job_not_found"
    JOB_NOT_FINISHED = "job_not_finished"
    JOB_NOT_CANCELLABLE = "job_not_cancellable"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    INVALID_EVENT_ID = "invalid_event_id"
    UNKNOWN_EVENT_ID = "unknown_event_id"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    QUEUE_FULL = "queue_full"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    PRIORITY_NOT_ALLOWED = "priority_not_allowed"
    NO_WORKER = "no_worker"
    MODEL_FAILED_TO_LOAD = "model_failed_to_load"
    STORE_UNAVAILABLE = "store_unavailable"
    SERVER_SHUTDOWN = "server_shutdown"
    INTERNAL = "internal_error"
    # jobs that ended without success
    WORKER_LOST = "worker_lost"
    POISONED = "poisoned"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUT_OF_MEMORY = "out_of_memory"
    ENGINE_ERROR = "engine_error"
    CANCELLED = "cancelled"
    # streams that cannot go on
    HISTORY_LOST = "history_lost"
    JOB_LOST = "job_lost"
    EVENTS_EXPIRED = "events_expired"


class PenstockError(Exception):
    """The root. `code` is what a client sees; `param` names the offending field, where there is one."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, *, param: str | None = None, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class Refused(PenstockError):
    """A request that was not accepted; it left nothing behind."""

    code = ErrorCode.INVALID_REQUEST


class TryLater(Refused):
    """Refused for now; `retry_after_s` is when to come back."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(TryLater):
    """The model's line, or the tenant's part of it, is at its limit."""

    code = ErrorCode.QUEUE_FULL


class RateLimited(TryLater):
    """The tenant's rate of requests or tokens is used up; `rates` is what is left."""

    code = ErrorCode.RATE_LIMIT_EXCEEDED

    def __init__(self, message: str, retry_after_s: int, rates: Rates | None) -> None:
        super().__init__(message, retry_after_s)
        self.rates = rates


class UnknownJob(Refused):
    """No job of this id: never given out, or its retention is over."""

    code = ErrorCode.JOB_NOT_FOUND


class Conflict(Refused):
    """The idempotency key was used with another body."""

    code = ErrorCode.IDEMPOTENCY_CONFLICT


class BadConfig(PenstockError):
    """Settings or models.toml are wrong; the message names the key and the remedy."""


class StoreDown(PenstockError):
    """Redis cannot be reached, or refuses writes."""

    code = ErrorCode.STORE_UNAVAILABLE


class StoreRefused(StoreDown):
    """Redis answered this call with an error, and would take others: a record that no script can read."""
