"""Grammars as llguidance takes them: one translation for the API, which checks it, and the engines, which obey it.

Both sides use the same limits, so that one request's grammar cannot hold up a batch for more than tenths of a second.
"""

from __future__ import annotations

import json
from typing import Final

from llguidance import LLMatcher, LLParserLimits

from tasks.sampling import Grammar

#: The fields of a request that ask for a grammar, by the kind that they make.
FIELDS: Final = {"json_schema": "response_format", "regex": "regex", "lark": "grammar"}

#: llguidance's own defaults let `((a{1000}){1000}){1000}` compute for seconds before it is given up.
LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)

_LONGEST_COMPLAINT = 500


def source(grammar: Grammar) -> str:
    """The grammar in llguidance's own JSON. Raises ValueError for a schema that is no JSON object.

    JSON is made without white space: where a schema allows any, a model can go on with it for ever.
    """
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"whitespace_flexible": False})
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":  # not by `grammar_from_lark`, which lets JSON pass as what it is
            return json.dumps({"grammars": [{"lark_grammar": grammar.text}]})


def complaint(grammar: Grammar) -> str | None:
    """Why the grammar cannot be used, or None. The engine finds out the rest: the name of a special token that the
    model does not have, and a form that exceeds the limits only while it is followed.
    """
    try:
        text = LLMatcher.validate_grammar(source(grammar), limits=LIMITS)
    except ValueError as error:
        text = str(error)
    return readable(text) or None


def readable(text: str) -> str:
    """A message of llguidance's, for people."""
    return text.removesuffix("<non-verbose/>").strip()[:_LONGEST_COMPLAINT]
