"""From requests to jobs: defaults, the two ways to write an idempotency key, positions, estimates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from api.admission import Admitted, idempotency_key
from api.intake import body_hash, chat_spec, completion_spec
from api.pool import ModelView
from api.positions import Position, position_of
from api.prompts import Prompts
from api.schemas import ChatJob, ChatRequest, CompletionRequest
from tasks.catalog import ModelEntry
from tasks.errors import ErrorCode, Refused
from tasks.events import START, EntryId
from tasks.jobs import JobSpec
from tasks.profile import WorkerCard
from tasks.settings import Settings
from tasks.store import Line
from tasks.tenants import EVERYBODY
from tests.api_server import MODEL, fake_profile

SETTINGS = Settings()
HI: Any = [{"role": "user", "content": "hi"}]


def admitted(**profile: Any) -> Admitted:
    prompts = Prompts(dataclasses.replace(fake_profile(), **profile))
    return Admitted(EVERYBODY, "interactive", ModelEntry(name=MODEL, engine="fake"), ModelView(prompts), prompts)


async def chat(**fields: Any) -> JobSpec:
    request = ChatRequest.model_validate({"model": MODEL, "messages": HI, **fields})
    return await chat_spec(request, admitted(), SETTINGS, "req_1")


async def test_chat_defaults() -> None:
    spec = await chat()
    assert (spec.kind, spec.n, spec.stream, spec.store, spec.priority) == ("chat", 1, False, False, "interactive")
    assert spec.sampling.max_tokens == 512 - len(spec.prompts[0])
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.top_k, spec.sampling.logprobs) == (
        1,
        1,
        0,
        None,
    )
    assert (spec.retention_s, spec.request_id) == (SETTINGS.retention_stream_s, "req_1")
    assert spec.sampling.seed != (await chat()).sampling.seed


async def test_every_parameter_arrives() -> None:
    spec = await chat(
        max_completion_tokens=7, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-3, stop="x", n=2, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5, logit_bias={"7": -100}, logprobs=True, top_logprobs=2, stream=True,
        stream_options={"include_usage": True}, store=True, metadata={"a": "b"}, user="u",
    )  # fmt: skip
    s = spec.sampling
    assert (s.max_tokens, s.temperature, s.top_p, s.top_k, s.min_p, s.seed, s.stop) == (7, 0, 0.5, 0, 0.1, -3, ("x",))
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1, -1, 1.5)
    assert (s.logit_bias, s.logprobs, spec.n, spec.include_usage) == ({7: -100.0}, 2, 2, True)
    assert (spec.store, spec.retention_s, spec.metadata) == (True, SETTINGS.retention_s, {"a": "b"})
    assert JobSpec.from_json(spec.to_json()) == spec


async def test_what_the_model_recommends_fills_what_a_request_leaves_open() -> None:
    model = admitted(sampling={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1})
    request = ChatRequest.model_validate({"model": MODEL, "messages": HI, "top_k": -1, "temperature": None})
    sampling = (await chat_spec(request, model, SETTINGS, "")).sampling
    assert (sampling.temperature, sampling.top_k, sampling.repetition_penalty, sampling.top_p) == (0.6, 0, 1.1, 1)


async def test_a_developer_is_a_system_and_parts_are_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    left = await chat(messages=[{"role": "developer", "content": "be"}, {"role": "user", "content": parts}])
    right = await chat(messages=[{"role": "system", "content": "be"}, {"role": "user", "content": "one\ntwo"}])
    assert left.prompts == right.prompts


async def test_completions_and_jobs() -> None:
    request = CompletionRequest.model_validate({"model": MODEL, "prompt": [[5], [6, 7]], "logprobs": 0, "n": 3})
    spec = await completion_spec(request, admitted(), SETTINGS, "")
    assert (spec.prompts, spec.choices, spec.sampling.max_tokens, spec.sampling.logprobs) == (((5,), (6, 7)), 6, 16, 0)
    job = ChatJob.model_validate({"model": MODEL, "messages": HI, "deadline_s": 1.5, "priority": "batch"})
    spec = await chat_spec(job, dataclasses.replace(admitted(), priority="batch"), SETTINGS, "")
    assert (spec.id[:4], spec.store, spec.deadline_ms, spec.priority) == ("job_", True, 1500, "batch")


async def test_the_context_error_says_the_numbers() -> None:
    with pytest.raises(Refused, match=r"512 tokens.*605.*5 in the messages.*600") as caught:
        await chat(max_tokens=600)
    assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_a_body_hash_tells_requests_apart() -> None:
    first, second = (ChatRequest.model_validate({"model": MODEL, "messages": HI, "seed": seed}) for seed in (1, 2))
    assert body_hash("chat", first) == body_hash("chat", first.model_copy())
    assert len({body_hash("chat", first), body_hash("chat", second), body_hash("job", first)}) == 3


@pytest.mark.parametrize(
    ("header", "key"),
    [(None, ""), ("abc", "abc"), ('"abc"', "abc"), ('"a b"', "a b"), (r'"a\"b"', 'a"b'), ("a" * 255, "a" * 255)],
)
def test_idempotency_keys(header: str | None, key: str) -> None:
    assert idempotency_key(header) == key


def test_positions() -> None:
    assert position_of(None, None).after == START
    assert position_of("3-4", "1-2") == Position(EntryId(3, 4), "Last-Event-ID")
    assert position_of(None, "1-2") == Position(EntryId(1, 2), "starting_after")


def test_estimates() -> None:
    card = WorkerCard("w", MODEL, "fake", "ready", [], "cpu", 4, 4, "h", 1, 0, 0)
    line = Line(10, 10, 20.0, (2, 8, 0), (20, 800, 0))  # two short answers, then eight of a hundred tokens
    view = ModelView(cards=[card], line=line)
    assert [view.eta_s(place) for place in (1, 2, 3, 6)] == [0.1, 0.1, 0.6, 2.1]
    assert view.eta_s(12, answer=50) == 4.6  # two that nobody had counted yet, as long as its own
    assert view.eta_s(None) is None
    assert view.retry_after_s() == 6
    idle = dataclasses.replace(card, running=1)
    assert [ModelView(cards=[idle], line=view.line).eta_s(place) for place in (1, 2)] == [0.0, 0.1]
    assert ModelView(line=line).eta_s(8) is None
    assert ModelView(cards=[card], line=Line(9000, 0, 100.0, (9000, 0, 0), (900000, 0, 0))).retry_after_s() == 120
