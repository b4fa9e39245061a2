"""The error table is total, and every error is OpenAI's object."""

from __future__ import annotations

import pytest

from api.errors import TABLE, code_of, error_object, response_of
from tasks.errors import ErrorCode, PenstockError, QueueFull


def test_the_table_is_total() -> None:
    assert set(TABLE) == set(ErrorCode)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_is_a_whole_error_object(code: ErrorCode) -> None:
    error = PenstockError("words", param="field", code=code)
    body = error_object(error)["error"]
    assert body == {"message": "words", "type": body["type"], "param": "field", "code": str(code)}
    reply = response_of(error)
    assert (reply.status_code >= 500) == (body["type"] == "server_error")
    assert ("retry-after" in reply.headers) == (reply.status_code in (429, 503))


@pytest.mark.parametrize(("seconds", "header"), [(0, "1"), (7, "7"), (1000, "120")])
def test_retry_after_is_one_that_clients_obey(seconds: int, header: str) -> None:
    assert response_of(QueueFull("full", seconds)).headers["retry-after"] == header


def test_clients_are_told_not_to_repeat_what_will_fail_again() -> None:
    for code in (ErrorCode.POISONED, ErrorCode.CANCELLED, ErrorCode.OUT_OF_MEMORY, ErrorCode.JOB_NOT_FINISHED):
        assert response_of(PenstockError("x", code=code)).headers["x-should-retry"] == "false"
    assert response_of(PenstockError("x", code=ErrorCode.NO_WORKER)).headers["x-should-retry"] == "true"


def test_an_unknown_code_of_a_record_is_an_internal_error() -> None:
    assert code_of("from_the_future") is ErrorCode.INTERNAL
    assert code_of(None) is ErrorCode.INTERNAL
    assert code_of("poisoned") is ErrorCode.POISONED
