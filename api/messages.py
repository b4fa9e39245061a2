"""The messages of a conversation and the tools that a model may call, checked field by field."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Strict(BaseModel):
    """No coercion, no unknown field, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    """What a model called in an earlier answer."""

    name: str = Field(min_length=1)
    arguments: str = Field(description="a JSON object, as text")

    @field_validator("arguments")
    @classmethod
    def _arguments(cls, value: str) -> str:
        try:
            read = json.loads(value)
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from None
        if not isinstance(read, dict):
            raise ValueError("no JSON object")
        return value


class ToolCall(Strict):
    """A call in an earlier answer; `id` is what the message with its result refers to."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = Field(None, description="left over from a stream; not used")


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = Field(None, description="of an assistant: what it called")
    tool_call_id: str | None = Field(None, validate_default=True, description="of a tool: whose result this is")
    content: str | list[TextPart] | None = Field(None, validate_default=True)

    @field_validator("tool_calls")
    @classmethod
    def _calls(cls, value: list[ToolCall] | None, info: ValidationInfo) -> list[ToolCall] | None:
        if value and info.data.get("role") != "assistant":
            raise ValueError("only an assistant calls tools")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _call(cls, value: str | None, info: ValidationInfo) -> str | None:
        role = info.data.get("role")
        if role is not None and (value is None) is (role == "tool"):
            raise ValueError("a message of role tool needs one, and no other has one")
        return value

    @field_validator("content")
    @classmethod
    def _content(cls, value: str | list[TextPart] | None, info: ValidationInfo) -> str | list[TextPart] | None:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("is missing; only an assistant that calls tools has none")
        return value

    @property
    def text(self) -> str:
        """The content as one text; parts are joined by a line break, as vLLM does."""
        content = self.content or ""
        return content if isinstance(content, str) else "\n".join(part.text for part in content)

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: arguments are objects there."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class FunctionDefinition(Strict):
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="arguments of required calls always fit; of others they never must")


class Tool(Strict):
    """Something that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Strict):
    """The name of a function."""

    name: str


class NamedTool(Strict):
    """The one function that the model has to call."""

    type: Literal["function"]
    function: FunctionName
