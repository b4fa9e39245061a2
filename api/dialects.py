"""How families of models write a call of a tool into their answer, and grammars that make them write one.

A family is told by its chat template, which is where the model was told how to write. The formats are those that the
chat templates of Hermes and Qwen (`<tool_call>`), and of Llama 3.1 and later (a bare JSON object) ask for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tasks.sampling import Grammar


@dataclass(frozen=True, slots=True)
class Dialect:
    """A call is `begin`, a JSON object with the name and, under the key `arguments`, the arguments, and `end`.

    Without `begin` a call stands at the beginning of the answer. `between` separates calls.
    """

    name: str
    begin: str
    end: str
    arguments: str
    between: str


DIALECTS: Final[dict[str, Dialect]] = {
    each.name: each
    for each in (
        Dialect("hermes", "<tool_call>", "</tool_call>", "arguments", "\n"),
        Dialect("llama", "", "", "parameters", "; "),
    )
}


def dialect_of(template: str | None) -> Dialect | None:
    """That of a chat template; None if it has no place for tools, or asks for a format that is not known here."""
    if template is None or "tools" not in template:
        return None
    if DIALECTS["hermes"].begin in template:
        return DIALECTS["hermes"]
    if '"parameters": dictionary' in template:
        return DIALECTS["llama"]
    return None


def grammar_of_calls(dialect: Dialect, functions: Mapping[str, dict[str, Any]], many: bool) -> Grammar:
    """An answer that is nothing but calls of these functions, given by name with the JSON schema of their arguments."""
    calls = [_call(dialect, name, schema) for name, schema in functions.items()]
    body: dict[str, Any] = {"anyOf": calls, "x-guidance": {"whitespace_flexible": False}}
    begin, end = (f'"{mark}" ' if mark else "" for mark in (dialect.begin and dialect.begin + "\\n", dialect.end))
    more = f' ("{dialect.between.encode("unicode_escape").decode()}" call)*' if many else ""
    line_end = '"\\n" ' if dialect.end else ""
    rules = [f"start: call{more}", f"call: {begin}body {line_end}{end}".rstrip(), f"body: %json {json.dumps(body)}"]
    return Grammar("lark", "\n".join(rules))


def _call(dialect: Dialect, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, dialect.arguments: schema},
        "required": ["name", dialect.arguments],
        "additionalProperties": False,
    }
