"""What the tools of a request become: a prompt, a grammar, a form to read; and what is refused by which name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from api.admission import Admitted
from api.intake import chat_spec
from api.pool import ModelView
from api.prompts import Prompts
from api.schemas import ChatRequest
from tasks.catalog import ModelEntry
from tasks.errors import ErrorCode, Refused
from tasks.grammar import complaint
from tasks.jobs import JobSpec
from tasks.settings import Settings
from tasks.tenants import EVERYBODY
from tests.api_server import MODEL, fake_profile

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HISTORY: Any = [
    *HI,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "x"},
]
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"


async def chat(template: str | None = None, **fields: Any) -> JobSpec:
    profile = dataclasses.replace(fake_profile(), structured=True)
    prompts = Prompts(dataclasses.replace(profile, chat_template=template) if template else profile)
    admitted = Admitted(EVERYBODY, "interactive", ModelEntry(name=MODEL, engine="fake"), ModelView(prompts), prompts)
    request = ChatRequest.model_validate({"model": MODEL, "messages": HI, **fields})
    return await chat_spec(request, admitted, Settings(), "")


async def test_tools_are_told_to_the_model_and_read_out_of_its_answer() -> None:
    plain, told = await chat(), await chat(tools=[TOOL])
    assert len(told.prompts[0]) > len(plain.prompts[0])
    assert (told.tool_format, told.sampling.grammar) == ("hermes", None)
    assert JobSpec.from_json(told.to_json()) == told
    assert "tool_format" not in json.loads(plain.to_json())


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
async def test_calls_that_are_required_bind_the_answer(choice: Any) -> None:
    grammar = (await chat(tools=[TOOL], tool_choice=choice)).sampling.grammar
    assert grammar is not None
    assert complaint(grammar) is None


async def test_a_model_that_may_not_call_is_told_of_nothing() -> None:
    assert await spec_of(tools=[TOOL], tool_choice="none") == await spec_of()


async def spec_of(**fields: Any) -> JobSpec:
    return dataclasses.replace(await chat(seed=1, **fields), id="")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
        ({"messages": HISTORY}, "messages[1]"),
        ({"messages": HISTORY, "tools": [TOOL], "tool_choice": "none"}, "messages[1]"),
    ],
)
async def test_a_model_without_a_place_for_tools_refuses_them_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        await chat(PLAIN, **fields)
    assert (caught.value.param, caught.value.code) == (param, ErrorCode.UNSUPPORTED_PARAMETER)
    await chat(PLAIN, tools=[TOOL], tool_choice="none")


async def test_only_one_form_can_be_obeyed() -> None:
    with pytest.raises(Refused, match="only one of"):
        await chat(tools=[TOOL], tool_choice="required", regex="a")
