"""The form that a request wants its answer to have, checked before the job exists."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from api.admission import Admitted
from api.prompts import THREAD_CHARS
from api.schemas import GenerationRequest
from tasks.errors import ErrorCode, Refused
from tasks.grammar import complaint
from tasks.sampling import Grammar

#: Longer ones take an engine, and everybody in its batch, too long to read in.
MAX_CHARS: Final = 65_536

_ANY_OBJECT: Final = {"type": "object"}


async def grammar_of(request: GenerationRequest, admitted: Admitted, calls: Grammar | None = None) -> Grammar | None:
    """The grammar that the answer must follow, if any; `calls` is that of required tool calls. Raises `Refused`."""
    asked = _asked(request) | ({} if calls is None else {"tool_choice": calls})
    if not asked:
        return None
    (param, grammar), *more = asked.items()
    if more:
        raise Refused(f"only one of {', '.join(asked)} can be obeyed", param=more[0][0])
    if not admitted.prompts.profile.structured:
        text = f"{param}: the engine of {request.model} cannot bind an answer to a form"
        raise Refused(text, param=param, code=ErrorCode.UNSUPPORTED_PARAMETER)
    if len(grammar.text) > MAX_CHARS:
        raise Refused(f"{param} has {len(grammar.text)} characters; at most {MAX_CHARS} are accepted", param=param)
    long = len(grammar.text) > THREAD_CHARS
    wrong = await asyncio.to_thread(complaint, grammar) if long else complaint(grammar)
    if wrong is not None:
        raise Refused(f"{param} cannot be used: {wrong}", param=param)
    return grammar


def _asked(request: GenerationRequest) -> dict[str, Grammar]:
    """Grammars by the field that asks for them."""
    asked = {}
    form = request.response_format
    if form is not None and form.type != "text":
        schema = _ANY_OBJECT if form.json_schema is None else form.json_schema.body
        param = "response_format" + ("" if form.json_schema is None else ".json_schema.schema")
        asked[param] = Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
    if request.regex is not None:
        asked["regex"] = Grammar("regex", request.regex)
    if request.grammar is not None:
        asked["grammar"] = Grammar("lark", request.grammar)
    return asked
