"""Bad input and a pool that cannot take more: the right status, an OpenAI error object, and nothing left in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from tests.api_server import MODEL, ApiLine, api_line
from tests.processes import wait_until

HI: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
MARK = object()
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: Any = {"type": "function", "function": {"name": "f"}}

#: (fields on top of a good chat request, the field named, the code)
CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": "nope"}, "model", "model_not_found"),
    ({"model": ""}, "model", "invalid_request"),
    ({"model": 5}, "model", "invalid_request"),
    ({"model": MARK}, "model", "invalid_request"),
    ({"messages": []}, "messages", "invalid_request"),
    ({"messages": "hi"}, "messages", "invalid_request"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_request"),
    ({"messages": MARK}, "messages", "invalid_request"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_request"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "invalid_request"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages[0].tool_call_id", ""),
    ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].name", "unsupported_parameter"),
    ({"messages": [*HI, {"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[1].tool_calls", ""),
    (
        {
            "messages": [
                *HI,
                {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "["}}]},
            ]
        },
        "messages[1].tool_calls[0].function.arguments",
        "invalid_request",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_request"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", ""),
    ({"messages": [*HI, {"role": "user", "content": "x", "name": "bob"}]}, "messages[1].name", "unsupported_parameter"),
    ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0].mood", "unsupported_parameter"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
    ({"max_tokens": 600}, "messages", "context_length_exceeded"),
    ({"max_tokens": 10**18}, "messages", "context_length_exceeded"),
    ({"max_tokens": 0}, "max_tokens", "invalid_request"),
    ({"max_tokens": -1}, "max_tokens", "invalid_request"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_request"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_request"),
    ({"temperature": 2.1}, "temperature", "invalid_request"),
    ({"temperature": "1"}, "temperature", "invalid_request"),
    ({"temperature": True}, "temperature", "invalid_request"),
    ({"top_p": 0}, "top_p", "invalid_request"),
    ({"top_k": -2}, "top_k", "invalid_request"),
    ({"min_p": 1.1}, "min_p", "invalid_request"),
    ({"seed": 2**63}, "seed", "invalid_request"),
    ({"min_tokens": -1}, "min_tokens", "invalid_request"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_request"),
    ({"ignore_eos": 1}, "ignore_eos", "invalid_request"),
    ({"stop_token_ids": 1}, "stop_token_ids", "invalid_request"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_request"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", "invalid_request"),
    ({"n": 0}, "n", "invalid_request"),
    ({"n": 9}, "n", "invalid_request"),
    ({"n": 10**30}, "n", "invalid_request"),
    ({"stop": ""}, "stop", "invalid_request"),
    ({"stop": ["a"] * 17}, "stop", "invalid_request"),
    ({"stop": [1]}, "stop[0]", "invalid_request"),
    ({"presence_penalty": -3}, "presence_penalty", "invalid_request"),
    ({"frequency_penalty": 3}, "frequency_penalty", "invalid_request"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_request"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_request"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_request"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_request"),
    ({"logprobs": 1}, "logprobs", "invalid_request"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
    ({"stream": "yes"}, "stream", "invalid_request"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_request"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unsupported_parameter"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_request"),
    ({"user": 1}, "user", "invalid_request"),
    ({"store": "no"}, "store", "invalid_request"),
    ({"tools": [{}]}, "tools[0].type", "invalid_request"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_request"),
    ({"tools": [TOOL, TOOL]}, "tools", "invalid_request"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", ""),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_request"),
    ({"tool_choice": "perhaps"}, "tool_choice", "invalid_request"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "invalid_request"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_request"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_request"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "invalid_request",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": True}}},
        "response_format.json_schema.schema",
        "invalid_request",
    ),
    ({"regex": ""}, "regex", "invalid_request"),
    ({"regex": "a"}, "regex", "unsupported_parameter"),
    ({"grammar": "start: /a/"}, "grammar", "unsupported_parameter"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    ({"typo": 1}, "typo", "unsupported_parameter"),
    ({"prompt": "x"}, "prompt", "unsupported_parameter"),
    ({"priority": 5}, "priority", "invalid_request"),
]
COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "invalid_request"),
    ({"prompt": ""}, "prompt", "invalid_request"),
    ({"prompt": []}, "prompt", "invalid_request"),
    ({"prompt": [[]]}, "prompt", "invalid_request"),
    ({"prompt": 5}, "prompt", "invalid_request"),
    ({"prompt": ["a", 1]}, "prompt[1]", "invalid_request"),
    ({"prompt": [-1]}, "prompt", "invalid_request"),
    ({"prompt": [10**9]}, "prompt", "invalid_request"),
    ({"prompt": ["a"] * 9}, "prompt", "invalid_request"),
    ({"prompt": ["a"] * 3, "n": 3}, "n", "invalid_request"),
    ({"prompt": "a" * 500}, "prompt", "context_length_exceeded"),
    ({"prompt": "a", "echo": True}, "echo", "unsupported_parameter"),
    ({"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_request"),
]
JOBS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "invalid_request"),
    ({"prompt": "a", "messages": HI}, "messages", "invalid_request"),
    ({"prompt": "a", "webhook": "http://127.0.0.1"}, "webhook", "unsupported_parameter"),
    ({"prompt": "a", "priority": "high"}, "priority", "invalid_request"),
    ({"prompt": "a", "deadline_s": 0}, "deadline_s", "invalid_request"),
    ({"prompt": "a", "deadline_s": "1"}, "deadline_s", "invalid_request"),
    ({"messages": [{"role": "x", "content": "y"}]}, "messages[0].role", "invalid_request"),
]
#: (body, content type, code, words of the message)
RAW = [
    (b"", "application/json", "invalid_request", "JSON object"),
    (b"[]", "application/json", "invalid_request", "JSON object"),
    (b'{"model": }', "application/json", "invalid_json", "position 10"),
    (b'{"model": "\xff"}', "application/json", "invalid_json", "position 11"),
    (b"[" * 100_000, "application/json", "invalid_json", "nested"),
    (b'{"x":' + b"[" * 100 + b"]" * 100 + b"}", "application/json", "invalid_json", "nested"),
    (b'{"model": "fake", "messages": [], "temperature": NaN}', "application/json", "invalid_request", ""),
    (
        b'{"model":"fake","messages":[{"role":"user","content":"\\ud800"}]}',
        "application/json",
        "invalid_request",
        "half",
    ),
    (b'{"model":"fake","messages":[{"role":"user","content":"hi"}]}', "text/plain", "invalid_request", "Content-Type"),
]


@pytest.fixture(scope="module")
def quiet(redis_server: str) -> Iterator[ApiLine]:
    """One API for all refusals: none of them may leave a trace for the next."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    with api_line(redis_server) as made:
        wait_until(lambda: "penstock:tick" in keys(made), "the first reap")
        yield made


def keys(line: ApiLine) -> list[str]:
    return line.keys("*")


def check(reply: httpx.Response, status: int, code: str, param: str | None) -> None:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (reply.status_code, error["param"]) == (status, param), error
    assert not code or error["code"] == code, error
    assert error["type"] == "invalid_request_error"
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [(CHAT, {"messages": HI, **fields}, param, code) for fields, param, code in CHATS]
    + [("/v1/completions", fields, param, code) for fields, param, code in COMPLETIONS]
    + [("/v1/jobs", fields, param, code) for fields, param, code in JOBS],
)
def test_bad_fields(quiet: ApiLine, path: str, fields: dict[str, Any], param: str | None, code: str) -> None:
    before = keys(quiet)
    body = {name: value for name, value in {"model": MODEL, **fields}.items() if value is not MARK}
    check(quiet.http.post(path, json=body), 404 if code == "model_not_found" else 400, code, param)
    assert keys(quiet) == before


@pytest.mark.parametrize(("body", "kind", "code", "words"), RAW)
def test_bad_bodies(quiet: ApiLine, body: bytes, kind: str, code: str, words: str) -> None:
    reply = quiet.http.post(CHAT, content=body, headers={"content-type": kind})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    assert words in reply.json()["error"]["message"]


def test_no_depth_of_nesting_is_an_internal_error(quiet: ApiLine) -> None:
    """Around the depth at which the JSON parser gives up, whatever comes after it must not give up first."""
    for depth in range(900, 1000, 3):
        body = b'{"model": "fake", "messages": ' + b"[" * depth + b"]" * depth + b"}"
        reply = quiet.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json"), depth


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_of_ten_megabytes(quiet: ApiLine, chunked: bool) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
    content = iter([body[i : i + 65536] for i in range(0, len(body), 65536)]) if chunked else body
    reply = quiet.http.post(CHAT, content=content, headers={"content-type": "application/json"})  # type: ignore[arg-type]
    check(reply, 413, "body_too_large", None)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/models/a/b", 404, "model_not_found"),
        ("GET", "/v1/jobs/job_x", 404, "job_not_found"),
        ("GET", "/v1/jobs/job_" + "a" * 24, 404, "job_not_found"),
        ("GET", "/v1/jobs/job_" + "a" * 24 + "/events", 404, "job_not_found"),
        ("POST", "/v1/jobs/job_" + "a" * 24 + "/cancel", 404, "job_not_found"),
        ("POST", "/v1/jobs/xyz/cancel", 404, "job_not_found"),
        ("GET", "/v1/chat/completions/chatcmpl-" + "a" * 24, 404, "job_not_found"),
        ("GET", "/v1/jobs?limit=0", 400, "invalid_request"),
        ("GET", "/v1/jobs?limit=101", 400, "invalid_request"),
    ],
)
def test_bad_paths(quiet: ApiLine, method: str, path: str, status: int, code: str) -> None:
    before = keys(quiet)
    reply = quiet.http.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert keys(quiet) == before


@pytest.mark.parametrize("key", ["", "a" * 256, '"open', "caf\u00e9", "two words", '""'])
def test_bad_idempotency_keys(quiet: ApiLine, key: str) -> None:
    body = {"model": MODEL, "messages": HI}
    reply = quiet.http.post(CHAT, json=body, headers={"Idempotency-Key": key.encode("latin-1")})  # type: ignore[dict-item]
    check(reply, 400, "invalid_request", "Idempotency-Key")


def test_neutral_values_of_unsupported_fields_are_accepted(line: ApiLine) -> None:
    neutral = {"tools": [], "tool_choice": None, "response_format": {"type": "text"}, "parallel_tool_calls": True}
    neutral |= {"service_tier": "auto", "functions": None, "modalities": ["text"], "audio": None, "temperature": None}
    history = [{"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "annotations": []}, *HI]
    answering = line.later("ok")
    reply = line.http.post(CHAT, json={"model": MODEL, "messages": history, **neutral})
    answering.join()
    assert reply.status_code == 200
