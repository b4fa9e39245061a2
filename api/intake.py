"""From a checked request to the job that is submitted: render, tokenise, fill every default, check against the model."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import Any, Literal

from api.admission import Admitted
from api.constraints import grammar_of
from api.schemas import ChatJob, ChatRequest, CompletionJob, CompletionRequest, GenerationRequest
from api.tools import use_of_tools
from tasks.errors import ErrorCode, Refused
from tasks.jobs import JobSpec, new_id
from tasks.sampling import Grammar, Sampling
from tasks.settings import Settings

COMPLETION_MAX_TOKENS = 16


async def chat_spec(request: ChatRequest, admitted: Admitted, settings: Settings, request_id: str) -> JobSpec:
    """The job of a chat request. Raises `Refused`."""
    use = use_of_tools(request, admitted)
    messages = [message.for_template() for message in request.messages]
    prompt = await admitted.prompts.chat(request.model, messages, use.tools)
    room = admitted.prompts.profile.max_model_len - len(prompt)
    asked = request.max_completion_tokens or request.max_tokens
    _check_context(admitted, len(prompt), asked or 1, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    grammar = await grammar_of(request, admitted, use.grammar)
    sampling = _sampling(request, admitted, asked or room, logprobs, grammar)
    spec = _spec("chat", (prompt,), request, sampling, admitted, settings, request_id)
    return replace(spec, tool_format=use.format)


async def completion_spec(
    request: CompletionRequest, admitted: Admitted, settings: Settings, request_id: str
) -> JobSpec:
    """The job of a plain completion. Raises `Refused`."""
    prompts = await _prompts(request.prompt, admitted)
    asked = request.max_tokens or COMPLETION_MAX_TOKENS
    for prompt in prompts:
        _check_context(admitted, len(prompt), asked, "prompt")
    grammar = await grammar_of(request, admitted)
    sampling = _sampling(request, admitted, asked, request.logprobs, grammar)
    return _spec("completion", prompts, request, sampling, admitted, settings, request_id)


def body_hash(route: str, request: GenerationRequest) -> str:
    """What an idempotency key stands for: this request on this route."""
    return hashlib.sha256(f"{route}\n{request.model_dump_json()}".encode()).hexdigest()


def _spec(
    kind: Literal["chat", "completion"],
    prompts: tuple[tuple[int, ...], ...],
    request: GenerationRequest,
    sampling: Sampling,
    admitted: Admitted,
    settings: Settings,
    request_id: str,
) -> JobSpec:
    n, most = request.n or 1, admitted.prompts.profile.max_num_seqs
    if n * len(prompts) > most:
        text = (
            f"{len(prompts)} prompts with n = {n} are {n * len(prompts)} answers; {request.model} runs at most {most}"
        )
        raise Refused(text, param="n")
    job = isinstance(request, ChatJob | CompletionJob)
    store = bool(request.store) or job
    return JobSpec(
        id=new_id("job" if job else kind),
        kind=kind,
        model=request.model,
        prompts=prompts,
        sampling=sampling,
        n=n,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        store=store,
        priority=admitted.priority,
        deadline_ms=max(1, int(request.deadline_s * 1000)) if request.deadline_s else None,
        retention_s=settings.retention_s if store else settings.retention_stream_s,
        tenant=admitted.tenant.name,
        request_id=request_id,
        metadata=dict(request.metadata or {}),
    )


def _sampling(
    request: GenerationRequest, admitted: Admitted, max_tokens: int, logprobs: int | None, grammar: Grammar | None
) -> Sampling:
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    asked = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    values: dict[str, Any] = {**admitted.prompts.profile.sampling, **asked}
    values["top_k"] = max(0, int(values.get("top_k", 0)))
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    bias = {int(token): float(value) for token, value in (request.logit_bias or {}).items()}
    _check_tokens(list(bias), admitted, "logit_bias")
    ends = tuple(request.stop_token_ids or ())
    _check_tokens(list(ends), admitted, "stop_token_ids")
    if (request.min_tokens or 0) > max_tokens:
        text = f"min_tokens is {request.min_tokens}, and the answer has {max_tokens} at most"
        raise Refused(text, param="min_tokens")
    values |= {"min_tokens": request.min_tokens or 0, "ignore_eos": bool(request.ignore_eos), "stop_token_ids": ends}
    seed = secrets.randbits(62) if request.seed is None else request.seed
    return Sampling(max_tokens, seed, logit_bias=bias, stop=stop, logprobs=logprobs, grammar=grammar, **values)


def _check_context(admitted: Admitted, prompt: int, answer: int, param: str) -> None:
    if prompt == 0:
        raise Refused("the prompt is empty", param=param)
    most = admitted.prompts.profile.max_model_len
    if prompt + answer > most:
        text = (
            f"this model's maximum context length is {most} tokens, but you asked for {prompt + answer}: "
            f"{prompt} in the {param} and {answer} for the answer. Shorten the {param}, or ask for fewer tokens."
        )
        raise Refused(text, param=param, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)


def _check_tokens(tokens: list[int], admitted: Admitted, param: str) -> None:
    size = admitted.prompts.profile.vocab_size
    if tokens and (min(tokens) < 0 or 0 < size <= max(tokens)):
        wrong = next(token for token in tokens if token < 0 or 0 < size <= token)
        raise Refused(f"{param}: {wrong} is no token of this model; it has {size}", param=param)


async def _prompts(
    prompt: str | list[str] | list[int] | list[list[int]], admitted: Admitted
) -> tuple[tuple[int, ...], ...]:
    """All four forms: a text, texts, token ids, lists of token ids."""
    if isinstance(prompt, str):
        return (await admitted.prompts.text(prompt),)
    if not prompt:
        raise Refused("the prompt is empty", param="prompt")
    if len(prompt) > admitted.prompts.profile.max_num_seqs and not isinstance(prompt[0], int):
        most = admitted.prompts.profile.max_num_seqs
        raise Refused(f"{len(prompt)} prompts; this model runs at most {most} at a time", param="prompt")
    if isinstance(prompt[0], str):  # pydantic has seen to it that all are of one kind
        return tuple([await admitted.prompts.text(text) for text in prompt])
    lists = [prompt] if isinstance(prompt[0], int) else prompt
    for tokens in lists:
        _check_tokens(tokens, admitted, "prompt")
    return tuple(tuple(tokens) for tokens in lists)
