"""What the tools of a request mean for its prompt, for the form of its answer, and for how the answer is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from api.admission import Admitted
from api.dialects import dialect_of, grammar_of_calls
from api.messages import NamedTool
from api.schemas import ChatRequest
from tasks.errors import ErrorCode, Refused
from tasks.sampling import Grammar

_NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`tools` go into the prompt; `grammar` binds an answer that must call; `format` is the name of the dialect."""

    tools: tuple[dict[str, Any], ...] = ()
    grammar: Grammar | None = None
    format: str = ""


def use_of_tools(request: ChatRequest, admitted: Admitted) -> ToolUse:
    """Raises `Refused` for a model that cannot be told of tools."""
    dialect = dialect_of(admitted.prompts.profile.chat_template)
    for number, message in enumerate(request.messages):
        if dialect is None and (message.role == "tool" or message.tool_calls):
            text = f"messages[{number}]: the chat template of {request.model} has no place for calls of tools"
            raise Refused(text, param=f"messages[{number}]", code=ErrorCode.UNSUPPORTED_PARAMETER)
    if not request.tools or request.tool_choice == "none":
        return ToolUse()
    if dialect is None:
        text = f"tools: the chat template of {request.model} has no place for them, or wants calls in an unknown form"
        raise Refused(text, param="tools", code=ErrorCode.UNSUPPORTED_PARAMETER)
    tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools)
    schemas = {tool.function.name: tool.function.parameters or _NO_PARAMETERS for tool in request.tools}
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        return ToolUse(tools, grammar_of_calls(dialect, {name: schemas[name]}, many=False), dialect.name)
    if request.tool_choice == "required":
        many = request.parallel_tool_calls is not False
        return ToolUse(tools, grammar_of_calls(dialect, schemas, many), dialect.name)
    return ToolUse(tools, None, dialect.name)
