"""Calls of tools in the text of an answer: read as they come, however the text is cut, and never lost."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.calls import CallReader, call_id, read_calls
from api.chunks import ChatChunks
from api.dialects import DIALECTS, Dialect, dialect_of
from api.frames import Frames, Resumed
from api.render import answer_object, fold
from tasks.events import Delta, End, Entry, EntryId, Started
from tasks.jobs import JobSpec
from tasks.sampling import Sampling

HERMES, LLAMA = DIALECTS["hermes"], DIALECTS["llama"]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bern", "days": [1, {"a": "}"}]}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
ODD = '<tool_call>{"arguments": {"a": 1}, "name": "odd"}</tool_call>'

#: Dialect, answer, what it says, and the calls.
ANSWERS: list[tuple[Dialect, str, str, list[tuple[str, Any]]]] = [
    (HERMES, "Just text.", "Just text.", []),
    (HERMES, "  \n", "  \n", []),
    (HERMES, "", "", []),
    (HERMES, WEATHER, "", [("weather", {"town": "Bern", "days": [1, {"a": "}"}]})]),
    (HERMES, f"Let me look. \n{WEATHER}\n{TIME}\n", "Let me look.", [("weather", None), ("time", {})]),
    (HERMES, f"\n\n{TIME}", "", [("time", {})]),
    (HERMES, f"{TIME} and then {ODD}", " and then", [("time", {}), ("odd", {"a": 1})]),
    (HERMES, ODD, "", [("odd", {"a": 1})]),
    (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
        "",
        [("f", {"x": "</tool_call>"})],
    ),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1}, "id": 7}</tool_call>', "", [("f", {"x": 1})]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1}}', "", [("f", {"x": 1})]),  # cut, but whole
    (HERMES, "<tool_call>call weather</tool_call>!", "<tool_call>call weather</tool_call>!", []),
    (HERMES, '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    (
        HERMES,
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        [],
    ),
    (HERMES, "a <tool", "a <tool", []),
    (HERMES, "1 < 2 <tool_ 3", "1 < 2 <tool_ 3", []),
    (LLAMA, '{"name": "f", "parameters": {"x": "a\\"}"}}', "", [("f", {"x": 'a"}'})]),
    (LLAMA, '\n{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", {}), ("g", {})]),
    (LLAMA, 'The object {"name": "f", "parameters": {}}', 'The object {"name": "f", "parameters": {}}', []),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, "", "", []),
]


@pytest.mark.parametrize(("dialect", "text", "said", "calls"), ANSWERS)
def test_what_is_said_and_what_is_called(dialect: Dialect, text: str, said: str, calls: list[tuple[str, Any]]) -> None:
    found, objects = read_calls(dialect, "chatcmpl-1", 0, text)
    assert found == said
    assert [each["function"]["name"] for each in objects] == [name for name, _ in calls]
    for each, (_, arguments) in zip(objects, calls, strict=True):
        read = json.loads(each["function"]["arguments"])
        assert arguments is None or read == arguments
    assert [each["id"] for each in objects] == [call_id("chatcmpl-1", 0, index) for index in range(len(calls))]


@given(st.sampled_from(ANSWERS), st.lists(st.integers(0, 90), max_size=12))
def test_however_the_text_is_cut_it_reads_the_same(answer: tuple[Dialect, str, str, Any], cuts: list[int]) -> None:
    dialect, text, *_ = answer
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    reader = CallReader(dialect)
    pieces = [piece for begin, end in pairwise(edges) for piece in reader.push(text[begin:end])]
    pieces += reader.finish()
    whole = CallReader(dialect)
    assert joined(pieces) == joined([*whole.push(text), *whole.finish()])


@given(st.text(st.sampled_from('<tool_ca>/{}"\\:,name arguments1;\n'), max_size=60), st.sampled_from([HERMES, LLAMA]))
def test_any_text_can_be_read(text: str, dialect: Dialect) -> None:
    said, calls = read_calls(dialect, "chatcmpl-1", 0, text)
    if not calls:
        assert said == text


def joined(pieces: list[Any]) -> list[Any]:
    """Pieces of the same kind joined."""
    found: list[Any] = []
    for piece in pieces:
        key = (type(piece).__name__, getattr(piece, "index", None), getattr(piece, "name", None))
        if found and found[-1][0] == key:
            found[-1] = (key, found[-1][1] + getattr(piece, "text", ""))
        else:
            found.append((key, getattr(piece, "text", "")))
    return found


def test_the_chat_template_tells_the_dialect() -> None:
    assert dialect_of(None) is None
    assert dialect_of("{{ messages }} <tool_call>") is None  # there is no place for the tools themselves
    assert dialect_of("{{ tools }} within <tool_call></tool_call>") is HERMES
    assert dialect_of('{{ tools }} {"name": function name, "parameters": dictionary of argument name}') is LLAMA
    assert dialect_of("{{ tools }} as you like") is None


SPEC = JobSpec("chatcmpl-1", "chat", "m", ((1,),), Sampling(99, 1), tool_format="hermes")


def entries(text: str, size: int) -> list[tuple[EntryId, Entry]]:
    """The log of an answer, so many characters an entry, by two attempts."""
    log: list[tuple[EntryId, Entry]] = [(EntryId(1, 1), Started(1, 0))]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for number, piece in enumerate(pieces):
        if number == len(pieces) // 2:
            log.append((EntryId(2, len(log) + 1), Started(2, number)))
        log.append((EntryId(log[-1][0].fence, len(log) + 1), Delta(0, number, (number,), piece)))
    return [*log, (EntryId(2, len(log) + 1), End("succeeded", len(pieces), 0, "stop"))]


def play(render: Frames, log: list[tuple[EntryId, Entry]]) -> list[tuple[EntryId, dict[str, Any]]]:
    """The events of a stream, each with the entry that it came from."""
    found = []
    for at, entry in log:
        blocks = render.frames(at, entry).decode().split("\n\n")[:-1]
        found += [(at, json.loads(block.split("data: ", 1)[1])) for block in blocks]
        assert all(("id: " in block) is (block is blocks[-1]) for block in blocks)
    return found


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_stream_with_calls_is_taken_up_after_any_entry(size: int) -> None:
    log = entries(f"One moment.\n{WEATHER}\n{TIME}", size)
    everything = play(ChatChunks(SPEC, 1), log)
    for at, _ in log[:-1]:
        had = [one for one in everything if one[0] <= at]
        assert had + play(Resumed(ChatChunks(SPEC, 1), at), log) == everything


def test_a_stream_with_calls_says_what_the_whole_answer_says() -> None:
    log = entries(f"One moment.\n{WEATHER}\n{TIME}", 3)
    choices = [chunk["choices"][0] for _, chunk in play(ChatChunks(SPEC, 1), log)]
    calls: dict[int, dict[str, Any]] = {}
    for delta in (choice["delta"] for choice in choices):
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls[call.pop("index")] = call
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    whole = answer_object(SPEC, 1, fold(SPEC, [entry for _, entry in log]))["choices"][0]
    assert whole["message"]["tool_calls"] == list(calls.values())
    assert whole["message"]["content"] == "".join(choice["delta"].get("content") or "" for choice in choices)
    assert whole["finish_reason"] == choices[-1]["finish_reason"] == "tool_calls"
