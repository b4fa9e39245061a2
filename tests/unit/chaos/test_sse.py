"""The clients' own reading of streams, against the transcripts that the API's tests hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.record import Seen, Shape
from chaos.sse import Assembler, Event, Parser, Stop

GOLDEN = Path(__file__).parents[2] / "golden"


def read(name: str, shape: Shape, size: int = 10_000) -> list[Seen | Stop]:
    """All that a transcript brings, in pieces of this size."""
    data, parser, assembler = (GOLDEN / f"{name}.txt").read_bytes(), Parser(), Assembler(shape)
    events = [event for at in range(0, len(data), size) for event in parser.feed(data[at : at + size])]
    return [found for event in events if (found := assembler.take(event, 0.0)) is not None]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("chat", "chat"),
        ("chat_two_choices", "chat"),
        ("chat_usage", "chat"),
        ("completion", "completion"),
        ("job_events", "events"),
    ],
)
def test_a_stream_may_be_cut_anywhere(name: str, shape: Shape) -> None:
    assert read(name, shape, 1) == read(name, shape) == read(name, shape, 7)


def test_job_events() -> None:
    seen = [one for one in read("job_events", "events") if isinstance(one, Seen)]
    assert [one.place for one in seen] == [(2, 1), (2, 2), (2, 3), (3, 4), (3, 5), (3, 6)]
    assert [one.kind for one in seen] == ["started", "delta", "delta", "started", "delta", "end"]
    assert [(one.index, one.tokens) for one in seen if one.kind == "delta"] == [(0, 1), (1, 1), (2, 2)]
    assert seen[4].texts == ((0, "lo 🌊\n"),)
    assert (seen[5].state, seen[5].finishes, seen[5].usage) == ("succeeded", ((0, "stop"),), (3, 4))


def test_chunks() -> None:
    *seen, done = read("chat_usage", "chat")
    assert done == Stop("done")
    assert [one.place for one in seen if isinstance(one, Seen)] == [(2, 1), (2, 2), (3, 5), (3, 6)]
    last = seen[-1]
    assert isinstance(last, Seen)
    assert (last.kind, last.finishes, last.usage) == ("finish", ((0, "stop"),), (3, 4))


def test_two_choices() -> None:
    seen = [one for one in read("chat_two_choices", "chat") if isinstance(one, Seen)]
    assert [text for one in seen for text in one.texts] == [(0, "a"), (1, "b"), (0, "c")]
    assert [finish for one in seen for finish in one.finishes] == [(1, "length"), (0, "stop")]
    assert seen[0].place == (2, 1), "the role chunks of both choices are one entry"


def test_failures_end_a_job_and_errors_end_a_stream() -> None:
    ended = [one for one in read("chat_failed", "chat") if isinstance(one, Seen)][-1]
    assert (ended.kind, ended.state) == ("end", "failed")
    cancelled = [one for one in read("chat_cancelled", "chat") if isinstance(one, Seen)][-1]
    assert (cancelled.kind, cancelled.state) == ("end", "cancelled")
    told = Assembler("chat").take(Event(None, "", '{"error": {"code": "server_shutdown"}}'), 0.0)
    assert told == Stop("error", "server_shutdown")
    assert Assembler("events").take(Event(None, "rewind", "{}"), 0.0) == Stop("rewind")
    assert Assembler("events").take(Event("1-1", "delta", "{"), 0.0) == Stop("error", "malformed")


def test_half_of_an_entry_does_not_count() -> None:
    """The last event of an entry has the id: a client that comes back gets all of it again."""
    assembler = Assembler("chat")
    half = Event(
        None, "", '{"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": null, "finish_reason": null}]}'
    )
    assert assembler.take(half, 0.0) is None
    assert assembler.take(Event(None, "", "[DONE]"), 0.0) == Stop("error", "malformed"), "nothing may be left over"


USAGE = '"usage": {"prompt_tokens": 3, "completion_tokens": 4}'
FINISH = '"choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}]'


def test_token_counts_come_once_with_an_end() -> None:
    def last(first: str, second: str) -> Seen | Stop | None:
        assembler = Assembler("chat")
        assert assembler.take(Event(None, "", first), 0.0) is None
        return assembler.take(Event("1-2", "", second), 0.0)

    right = last(f'{{{FINISH}, "usage": null}}', f'{{"choices": [], {USAGE}}}')
    assert isinstance(right, Seen)
    assert right.usage == (3, 4)
    malformed = Stop("error", "malformed")
    assert last(f"{{{FINISH}, {USAGE}}}", f'{{"choices": [], {USAGE}}}') == malformed
    assert last('{"choices": []}', f'{{"choices": [], {USAGE}}}') == malformed


def test_a_job_event_without_an_id_is_wrong() -> None:
    event = Event(None, "started", '{"attempt": 1, "tokens": 0}')
    assert Assembler("events").take(event, 0.0) == Stop("error", "malformed")


def test_logprobs_of_both_routes() -> None:
    for name, shape in (
        ("chat_logprobs", "chat"),
        ("completion_logprobs", "completion"),
        ("job_events_logprobs", "events"),
    ):
        seen = [one for one in read(name, shape) if isinstance(one, Seen)]  # type: ignore[arg-type]
        assert [one for each in seen for one in each.logprobs or ()], name
