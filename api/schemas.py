"""The shapes of requests, checked field by field. What is not supported is refused by name, never ignored.

Clients send many optional fields as null or with their default value: those are dropped. Validation is strict, so "5"
is no number. What needs the model (context, vocabulary) is checked in `api.intake`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from api.messages import ChatMessage, NamedTool, Strict, Tool
from api.unsupported import (
    UNSUPPORTED_CHAT,
    UNSUPPORTED_COMPLETION,
    UNSUPPORTED_JOB,
    UNSUPPORTED_MESSAGE,
    check_text,
    drop_neutral,
)
from tasks.errors import Refused
from tasks.jobs import Priority

_INT64 = 2**63
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="a last chunk with the token counts")
    include_obfuscation: Literal[False] | None = Field(None, description="not supported; false is accepted")


class JsonSchema(Strict):
    """A schema that the answer must fit. It is always enforced; what cannot be enforced is refused."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    body: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="true and false mean the same: enforced")


class ResponseFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            text = "response_format.json_schema belongs to type json_schema, and only to it"
            raise Refused(text, param="response_format.json_schema")
        return self


class GenerationRequest(Strict):
    """What chat and plain completions have in common."""

    model: str = Field(min_length=1, max_length=128)
    max_tokens: int | None = Field(None, ge=1, description="most tokens of one answer")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    stop: str | list[str] | None = Field(None, description="at most 16 texts that end the answer")
    stop_token_ids: list[int] | None = Field(None, max_length=64, description="extension: tokens that end the answer")
    min_tokens: int | None = Field(None, ge=0, description="extension: no token ends the answer before so many")
    ignore_eos: bool | None = Field(None, description="extension: the model's own end tokens do not end the answer")
    n: int | None = Field(None, ge=1, le=1024, description="answers per prompt")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024, description="token id → -100 to 100")
    response_format: ResponseFormat | None = Field(
        None, description="text, any JSON object, or JSON that fits a schema"
    )
    regex: str | None = Field(None, min_length=1, description="extension: the whole answer matches it (Rust's syntax)")
    grammar: str | None = Field(None, min_length=1, description="extension: the answer follows this Lark grammar")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512)
    store: bool | None = Field(None, description="keep the answer, and finish it even if the client goes away")
    metadata: dict[str, str] | None = Field(None, max_length=16)
    priority: Priority | None = Field(
        None, description="extension: interactive (default where somebody waits), normal (default of jobs) or batch"
    )
    deadline_s: float | None = Field(
        None, gt=0, le=30 * 86400, description="extension: seconds after which the answer is useless"
    )

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        check_text(data)
        return data

    @field_validator("stop")
    @classmethod
    def _stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > 16:
            raise ValueError("at most 16 stop texts")
        if not all(0 < len(text) <= 256 for text in texts):
            raise ValueError("a stop text has 1 to 256 characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not _TOKEN_ID.fullmatch(token):
                raise ValueError(f"{token[:20]!r} is no token id")
            if not -100 <= bias <= 100:
                raise ValueError(f"the bias of token {token} is not between -100 and 100")
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if any(len(name) > 64 or len(text) > 512 for name, text in (value or {}).items()):
            raise ValueError("names have at most 64 characters, values at most 512")
        return value

    @model_validator(mode="after")
    def _options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise Refused("stream_options is only allowed with stream: true", param="stream_options")
        return self


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128, description="functions that the model may call")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="auto (default), none, required: at least one call, or the one function to call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call, where calls are required")

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        data = drop_neutral(data, UNSUPPORTED_CHAT)
        if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
            return data
        rows = [drop_neutral(row, UNSUPPORTED_MESSAGE, f"messages[{i}].") for i, row in enumerate(data["messages"])]
        return data | {"messages": rows}

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise Refused("max_tokens and max_completion_tokens differ", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs needs logprobs: true", param="top_logprobs")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise Refused("two tools have the same name", param="tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise Refused(f"there is no tool {self.tool_choice.function.name!r}", param="tool_choice")
        if self.tool_choice == "required" and not names:
            raise Refused("tool_choice: required needs tools", param="tool_choice")
        return self


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. The prompt is a text, several texts, token ids, or several lists of token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        return drop_neutral(data, UNSUPPORTED_COMPLETION)


class ChatJob(ChatRequest):
    """POST /v1/jobs with messages."""

    @model_validator(mode="before")
    @classmethod
    def _job(cls, data: Any) -> Any:
        return drop_neutral(data, UNSUPPORTED_JOB)


class CompletionJob(CompletionRequest):
    """POST /v1/jobs with a prompt."""

    @model_validator(mode="before")
    @classmethod
    def _job(cls, data: Any) -> Any:
        return drop_neutral(data, UNSUPPORTED_JOB)


def _kind(data: Any) -> str | None:
    if not isinstance(data, dict):
        return None
    if ("messages" in data) == ("prompt" in data):
        raise Refused("a job has either messages or a prompt", param="messages")
    return "chat" if "messages" in data else "completion"


JobRequest = Annotated[
    Annotated[ChatJob, Tag("chat")] | Annotated[CompletionJob, Tag("completion")], Discriminator(_kind)
]
