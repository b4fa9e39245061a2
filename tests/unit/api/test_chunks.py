"""Golden transcripts: what exactly goes over the wire. They change only on purpose, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.chunks import ChatChunks, CompletionChunks, JobEvents
from api.frames import Frames
from api.render import answer_object, fold
from tasks.errors import ErrorCode, PenstockError
from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId, Started
from tasks.jobs import JobSpec
from tasks.sampling import Sampling

GOLDEN = Path(__file__).parents[2] / "golden"
LOGPROB = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
LOGPROBS = ({**LOGPROB, "top_logprobs": [LOGPROB]},)

HELLO: list[Entry] = [
    Started(1, 0),
    Delta(0, 0, (5,), "Hel"),
    Delta(0, 1, (6,), ""),
    Started(2, 2),
    Delta(0, 2, (7, 8), "lo 🌊\n"),
    End("succeeded", 4, 0, "stop"),
]
TWO: list[Entry] = [
    Started(1, 0),
    Delta(0, 0, (5,), "a"),
    Delta(1, 0, (6,), "b"),
    ChoiceEnd(1, "length"),
    Delta(0, 1, (7,), "c"),
    End("succeeded", 3, 0, "stop"),
]
LOGGED: list[Entry] = [Started(1, 0), Delta(0, 0, (5,), "é", LOGPROBS), End("succeeded", 1, 0, "length")]
FAILED: list[Entry] = [Started(1, 0), Delta(0, 0, (5,), "half"), End("failed", 1, code="engine_error", message="boom")]
CANCELLED: list[Entry] = [Started(1, 0), End("cancelled", 0, code="cancelled")]


def spec_of(kind: str, **changes: object) -> JobSpec:
    prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
    sampling = Sampling(16, 1, logprobs=1 if changes.pop("logprobs", False) else None)
    return JobSpec(prefix + "A" * 24, kind, "m", ((1, 2, 3),), sampling, **changes)  # type: ignore[arg-type]


def transcript(render: Frames, entries: list[Entry]) -> str:
    fence, data = 1, b""
    for seq, entry in enumerate(entries, 1):
        fence += isinstance(entry, Started)
        data += render.frames(EntryId(fence, seq), entry)
    return (data + render.close()).decode()


CASES: dict[str, tuple[Frames, list[Entry]]] = {
    "chat": (ChatChunks(spec_of("chat"), 1700000000), HELLO),
    "chat_usage": (ChatChunks(spec_of("chat", include_usage=True), 1700000000), HELLO),
    "chat_two_choices": (ChatChunks(spec_of("chat", n=2), 1700000000), TWO),
    "chat_logprobs": (ChatChunks(spec_of("chat", logprobs=True), 1700000000), LOGGED),
    "chat_failed": (ChatChunks(spec_of("chat", include_usage=True), 1700000000), FAILED),
    "chat_cancelled": (ChatChunks(spec_of("chat"), 1700000000), CANCELLED),
    "chat_resumed": (ChatChunks(spec_of("chat"), 1700000000, resumed=True), HELLO),
    "completion": (CompletionChunks(spec_of("completion"), 1700000000), HELLO),
    "completion_usage": (CompletionChunks(spec_of("completion", include_usage=True), 1700000000), HELLO),
    "completion_two_choices": (CompletionChunks(spec_of("completion", n=2), 1700000000), TWO),
    "completion_logprobs": (CompletionChunks(spec_of("completion", logprobs=True), 1700000000), LOGGED),
    "job_events": (JobEvents(spec_of("chat")), HELLO),
    "job_events_two_choices": (JobEvents(spec_of("chat", n=2)), TWO),
    "job_events_logprobs": (JobEvents(spec_of("chat", logprobs=True)), LOGGED),
    "job_events_failed": (JobEvents(spec_of("chat")), FAILED),
}


@pytest.mark.parametrize("name", CASES)
def test_transcript(name: str) -> None:
    assert transcript(*CASES[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_no_transcript_is_forgotten() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_adds_up_to_the_whole_answer(kind: str) -> None:
    answer = answer_object(spec_of(kind, n=2), 1, fold(spec_of(kind, n=2), TWO))
    texts = [row["message"]["content"] if kind == "chat" else row["text"] for row in answer["choices"]]
    assert texts == ["ac", "b"]
    assert [row["finish_reason"] for row in answer["choices"]] == ["stop", "length"]
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["prompt_tokens"] == 3


def test_an_event_is_three_lines_however_one_splits() -> None:
    text = "a\u2028b\u2029c\x85d\x0b\x0c\x1ce\r\nf"
    event = ChatChunks(spec_of("chat"), 1).frames(EntryId(1, 2), Delta(0, 0, (1,), text)).decode()
    assert len(event.splitlines()) == 3
    assert json.loads(event.splitlines()[1][6:])["choices"][0]["delta"]["content"] == text


def test_a_shutdown_tells_jobs_to_come_back() -> None:
    error = PenstockError("bye", code=ErrorCode.SERVER_SHUTDOWN)
    assert JobEvents(spec_of("chat")).error(error).startswith(b"retry: 1000\nevent: error\n")
    assert ChatChunks(spec_of("chat"), 1).error(error).startswith(b'data: {"error":')
