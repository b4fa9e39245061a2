"""Tools over the whole line, from the SDK: the scripted engine says what it is told to, calls included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.integration.line_rig import Line, whole_line
from tests.processes import wait_until

TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "of today", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bern"}}\n</tool_call>'
ASK: Any = [{"role": "user", "content": f"Let me look.\n{CALL}"}]


@pytest.fixture
def line(tmp_path: Path, redis_url: str) -> Iterator[Line]:
    with whole_line(tmp_path, redis_url) as made:
        made.rig.start()
        wait_until(lambda: httpx.get(f"{made.url}/readyz", timeout=20).status_code == 200, "a ready line")
        yield made


@pytest.fixture
def sdk(line: Line) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{line.url}/v1", api_key="-", max_retries=0, timeout=30) as made:
        yield made


def test_the_sdk_gets_calls_whole_and_as_a_stream(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="fake", messages=ASK, tools=[TOOL]).choices[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", "Let me look.")
    (call,) = whole.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"town": "Bern"})
    with sdk.chat.completions.stream(model="fake", messages=ASK, tools=[TOOL]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [(event.name, json.loads(event.arguments)) for event in done] == [("weather", {"town": "Bern"})]
    assert (final.finish_reason, final.message.content) == ("tool_calls", "Let me look.")


def test_a_conversation_goes_on_with_the_result(sdk: openai.OpenAI) -> None:
    first = sdk.chat.completions.create(model="fake", messages=ASK, tools=[TOOL]).choices[0].message
    assert first.tool_calls
    history = [*ASK, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain, 7 degrees"}]
    answer = sdk.chat.completions.create(model="fake", messages=history, tools=[TOOL]).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("stop", "rain, 7 degrees")
    assert answer.message.tool_calls is None


def test_a_model_that_may_not_call_says_the_same_as_text(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="fake", messages=ASK, tools=[TOOL], tool_choice="none").choices[0]
    assert (answer.finish_reason, answer.message.content) == ("stop", ASK[0]["content"])


def test_a_stored_stream_is_taken_up_within_a_call(line: Line) -> None:
    """The client that comes back gets the rest of the arguments, not the beginning again."""
    body = {"model": "fake", "messages": ASK, "tools": [TOOL], "stream": True, "store": True}
    with httpx.Client(base_url=line.url, timeout=30) as http:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            job = answer.headers["x-penstock-job-id"]
            everything = events(answer.read().decode())
        ids = [at for at, _ in everything if at]
        assert len(ids) > 10
        for number, (at, _) in enumerate(everything):
            if at:
                path = f"/v1/chat/completions/{job}?stream=true&starting_after={at}"
                assert events(http.get(path).text) == everything[number + 1 :]


def events(text: str) -> list[tuple[str, str]]:
    """The id, if any, and the data of every event."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(row.split(": ", 1) for row in block.splitlines() if row and not row.startswith(":"))
        if "data" in fields:
            found.append((fields.get("id", ""), fields["data"]))
    return found
