"""The form of an answer, as a request may ask for it: what arrives in the job, and what is refused by which name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import BaseModel

from api.admission import Admitted
from api.constraints import MAX_CHARS
from api.intake import chat_spec, completion_spec
from api.pool import ModelView
from api.prompts import Prompts
from api.schemas import ChatJob, ChatRequest, CompletionRequest
from tasks.catalog import ModelEntry
from tasks.errors import ErrorCode, Refused
from tasks.jobs import JobSpec
from tasks.sampling import Grammar
from tasks.settings import Settings
from tasks.tenants import EVERYBODY
from tests.api_server import MODEL, fake_profile

SETTINGS = Settings()
HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"ä": {"type": "integer"}}, "required": ["ä"]}


def admitted(structured: bool = True) -> Admitted:
    prompts = Prompts(dataclasses.replace(fake_profile(), structured=structured))
    return Admitted(EVERYBODY, "interactive", ModelEntry(name=MODEL, engine="fake"), ModelView(prompts), prompts)


async def chat(structured: bool = True, kind: type[ChatRequest] = ChatRequest, **fields: Any) -> JobSpec:
    request = kind.model_validate({"model": MODEL, "messages": HI, **fields})
    return await chat_spec(request, admitted(structured), SETTINGS, "")


def named(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a_name-1", "schema": schema, **fields}}


def text_of(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False)


ASKED: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None, "regex": None, "grammar": None}, None),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "text"}, "regex": "a+"}, Grammar("regex", "a+")),
    ({"response_format": {"type": "json_object"}}, Grammar("json_schema", '{"type": "object"}')),
    ({"response_format": named(SCHEMA)}, Grammar("json_schema", text_of(SCHEMA))),
    ({"response_format": named(SCHEMA, strict=True, description="d")}, Grammar("json_schema", text_of(SCHEMA))),
    ({"grammar": 'start: "a"'}, Grammar("lark", 'start: "a"')),
]


@pytest.mark.parametrize(("fields", "grammar"), ASKED)
@pytest.mark.parametrize("kind", [ChatRequest, ChatJob])
async def test_what_is_asked_for_is_in_the_job(
    kind: type[ChatRequest], fields: dict[str, Any], grammar: Grammar | None
) -> None:
    spec = await chat(kind=kind, **fields)
    assert spec.sampling.grammar == grammar
    assert JobSpec.from_json(spec.to_json()) == spec


async def test_plain_completions_take_the_same_fields() -> None:
    request = CompletionRequest.model_validate({"model": MODEL, "prompt": "x", "regex": "[ab]"})
    assert (await completion_spec(request, admitted(), SETTINGS, "")).sampling.grammar == Grammar("regex", "[ab]")


async def test_the_schema_that_the_sdk_makes_of_a_class_is_accepted() -> None:
    from openai.lib._pydantic import to_strict_json_schema

    class Step(BaseModel):
        why: str
        next: list[Step] | None

    form = named(to_strict_json_schema(Step), strict=True)
    assert (await chat(response_format=form)).sampling.grammar is not None


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "belongs"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}},
     "response_format.json_schema", "belongs"),
    ({"response_format": named({"type": "nope"})}, "response_format.json_schema.schema", "nope"),
    ({"response_format": named({"uniqueItems": True})}, "response_format.json_schema.schema", "uniqueItems"),
    ({"response_format": named({"enum": ["x" * MAX_CHARS]})}, "response_format.json_schema.schema", "characters"),
    ({"regex": "("}, "regex", "unclosed"),
    ({"regex": "a" * (MAX_CHARS + 1)}, "regex", "characters"),
    ({"regex": "(" * 9000}, "regex", ""),
    ({"grammar": "start: x"}, "grammar", '"x"'),
    ({"regex": "a", "grammar": 'start: "a"'}, "grammar", "only one of regex, grammar"),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex", "only one of response_format, regex"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "word"), REFUSED)
async def test_what_cannot_be_used_is_refused_by_name(fields: dict[str, Any], param: str, word: str) -> None:
    with pytest.raises(Refused) as caught:
        await chat(**fields)
    assert (caught.value.param, caught.value.code) == (param, ErrorCode.INVALID_REQUEST)
    assert word in caught.value.message


@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}}, {"regex": "a"}, {"grammar": "x"}])
async def test_a_model_whose_engine_cannot_do_it_refuses(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=MODEL) as caught:
        await chat(structured=False, **fields)
    assert (caught.value.param, caught.value.code) == (next(iter(fields)), ErrorCode.UNSUPPORTED_PARAMETER)
    assert (await chat(structured=False, response_format={"type": "text"})).sampling.grammar is None
