"""Why a reader cannot go on, when nothing is wrong with Redis."""

from __future__ import annotations

from tasks.errors import ErrorCode, PenstockError


class JobLost(PenstockError):
    """The record is gone while somebody reads: deleted, or lost with Redis' last writes."""

    code = ErrorCode.JOB_LOST


class EventsExpired(PenstockError):
    """The job ended and its log is not kept any more."""

    code = ErrorCode.EVENTS_EXPIRED


class HistoryLost(PenstockError):
    """Redis lost entries that this reader has already given out."""

    code = ErrorCode.HISTORY_LOST
