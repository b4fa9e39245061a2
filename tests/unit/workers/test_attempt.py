"""From engine events to log entries, and back from a log to what is left to do."""

from __future__ import annotations

import json

import pytest

from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId, Started, decode
from tests.unit.workers.parts import make_attempt
from workers.attempt import Attempt
from workers.engine.base import Event, TokenLogprob


def entries(attempt: Attempt) -> list[Entry]:
    write = attempt.outbox.write(1000)
    return [] if write is None else [decode(json.loads(entry)) for entry, _ in write.entries]


def feed(attempt: Attempt, choice: int, *tokens: int, finish: str | None = None, **fields: object) -> None:
    one = attempt.choices[choice]
    text = "".join(chr(token) for token in tokens)
    event = Event(attempt.rid(one), len(one.tokens), tokens, text, finish=finish, **fields)  # type: ignore[arg-type]
    attempt.take(one, event)


def test_the_end_of_a_single_choice_is_one_write_with_the_last_token() -> None:
    attempt = make_attempt("hi")
    feed(attempt, 0, 65)
    feed(attempt, 0, 66, finish="length")
    assert entries(attempt) == [
        Delta(0, 0, (65,), "A"),
        Delta(0, 1, (66,), "B"),
        End("succeeded", 2, 0, "length"),
    ]
    write = attempt.outbox.write(1000)
    assert write is not None
    assert (write.first, write.end, write.code) == (2, "succeeded", "")
    assert [tokens for _, tokens in write.entries] == [1, 1, 0]


def test_choices_that_end_before_the_last_are_choice_ends() -> None:
    attempt = make_attempt("hi", n=3)
    feed(attempt, 1, 65, finish="stop")
    feed(attempt, 0, 66, finish="length")
    feed(attempt, 2, 67, finish="stop")
    assert [entry for entry in entries(attempt) if not isinstance(entry, Delta)] == [
        ChoiceEnd(1, "stop"),
        ChoiceEnd(0, "length"),
        End("succeeded", 3, 2, "stop"),
    ]


def test_an_error_of_one_choice_ends_the_job() -> None:
    attempt = make_attempt("hi", n=2)
    feed(attempt, 0, 65)
    feed(attempt, 1, finish="error", error="boom", code="out_of_memory")
    feed(attempt, 0, 66)
    assert entries(attempt)[-1] == End("failed", 1, 1, "error", "out_of_memory", "boom")
    assert attempt.complete


@pytest.mark.parametrize(
    ("verdict", "state", "code"), [("cancel", "cancelled", "cancelled"), ("deadline", "failed", "deadline_exceeded")]
)
def test_a_stopped_job_ends_when_its_last_sequence_does(verdict: str, state: str, code: str) -> None:
    attempt = make_attempt("hi", n=2)
    attempt.stopping = verdict
    feed(
        attempt,
        0,
        finish="cancelled",
    )
    assert entries(attempt) == []
    feed(attempt, 1, 65, finish="cancelled")
    end = entries(attempt)[-1]
    assert isinstance(end, End)
    assert (end.state, end.code, end.tokens) == (state, code, 1)


def test_a_job_that_finishes_before_its_cancel_arrives_has_succeeded() -> None:
    attempt = make_attempt("hi")
    attempt.stopping = "cancel"
    feed(attempt, 0, 65, finish="stop")
    assert entries(attempt)[-1] == End("succeeded", 1, 0, "stop")


def test_a_log_says_what_is_left_to_do() -> None:
    attempt = make_attempt("one", "two", n=2, seq=7)
    log: list[Entry] = [
        Started(1, 0),
        Delta(0, 0, (65, 66), "AB"),
        Delta(3, 0, (67,), ""),
        Delta(1, 0, (68,), "D"),
        ChoiceEnd(1, "stop"),
        Started(2, 4),
        Delta(0, 2, (69,), "E"),
    ]
    attempt.restore([(EntryId(1, seq), entry) for seq, entry in enumerate(log, 1)])
    requests = {request.choice: request for _, request in attempt.requests()}
    assert sorted(requests) == [0, 2, 3]
    assert (tuple(requests[0].done), requests[0].emitted) == ((65, 66, 69), 3)
    assert (tuple(requests[3].done), requests[3].emitted) == ((67,), 0)
    assert requests[0].prompt == attempt.spec.prompts[0]
    assert requests[2].prompt == requests[3].prompt == attempt.spec.prompts[1]
    assert requests[2].rid == f"{attempt.job}:5:2"
    feed(attempt, 0, 70)
    write = attempt.outbox.write(10)
    assert write is not None
    assert write.first == 8
    assert decode(json.loads(write.entries[0][0])) == Delta(0, 3, (70,), "F")


def test_a_job_whose_log_lacks_only_the_end_gets_it() -> None:
    attempt = make_attempt("hi", n=2)
    attempt.restore([(EntryId(1, 1), ChoiceEnd(0, "stop")), (EntryId(1, 2), ChoiceEnd(1, "length"))])
    assert attempt.end_if_done()
    assert entries(attempt) == [End("succeeded", 0, 1, "length")]
    empty = make_attempt()
    assert empty.end_if_done()
    assert isinstance(end := entries(empty)[-1], End)
    assert end.code == "invalid_request"


def test_logprobs_have_the_form_of_openai() -> None:
    attempt = make_attempt("hi")
    logprob = TokenLogprob("A", -0.5, (65,), (TokenLogprob("A", -0.5, (65,)), TokenLogprob("B", -1.0, (66,))))
    feed(attempt, 0, 65, logprobs=(logprob,))
    (delta,) = entries(attempt)
    assert isinstance(delta, Delta)
    assert delta.logprobs is not None
    assert delta.logprobs[0] == {
        "token": "A",
        "logprob": -0.5,
        "bytes": [65],
        "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]},
            {"token": "B", "logprob": -1.0, "bytes": [66]},
        ],
    }


def test_only_the_first_outcome_counts() -> None:
    attempt = make_attempt("hi")
    assert not attempt.wait(0)
    attempt.over("lost")
    attempt.over("released")
    assert attempt.wait(0)
    assert attempt.outcome == "lost"
