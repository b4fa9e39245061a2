"""What can be told of a grammar without a tokenizer, and how it is kept."""

from __future__ import annotations

import json

import pytest

from tasks.grammar import complaint, source
from tasks.sampling import Grammar, Sampling

GOOD = [
    Grammar("json_schema", '{"type": "object"}'),
    Grammar("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"title": "A", "type": "string", "maxLength": 3}}}'),
    Grammar("regex", r"[0-9]{3}/\d+|é"),
    Grammar("lark", 'start: "a" | start "b"'),
]
BAD = [
    (Grammar("json_schema", "true"), "object schema"),
    (Grammar("json_schema", '{"type": "nope"}'), "nope"),
    (Grammar("json_schema", '{"not": {"type": "string"}}'), "not"),
    (Grammar("json_schema", '{"$ref": "https://example.org/x"}'), "retriev"),
    (Grammar("json_schema", '{"enum": []}'), "Unsatisfiable"),
    (Grammar("regex", "("), "unclosed group"),
    (Grammar("regex", "a(?=b)"), "look-around"),
    (Grammar("lark", "start: other"), "other"),
    (Grammar("lark", 'x: "a"'), "start"),
    (Grammar("lark", '{"grammars": [{"lark_grammar": "start: /a/"}]}'), ""),
]


@pytest.mark.parametrize("grammar", GOOD)
def test_good_grammars_bring_no_complaint(grammar: Grammar) -> None:
    assert complaint(grammar) is None


@pytest.mark.parametrize(("grammar", "word"), BAD)
def test_a_complaint_says_what_is_wrong(grammar: Grammar, word: str) -> None:
    text = complaint(grammar)
    assert text is not None
    assert word in text
    assert len(text) <= 500


def test_json_is_made_without_white_space_whatever_the_schema_says() -> None:
    asked = {"type": "object", "x-guidance": {"whitespace_flexible": True}}
    made = json.loads(source(Grammar("json_schema", json.dumps(asked))))
    assert made["grammars"][0]["json_schema"]["x-guidance"]["whitespace_flexible"] is False


@pytest.mark.parametrize("grammar", [None, *GOOD])
def test_the_record_keeps_a_grammar(grammar: Grammar | None) -> None:
    sampling = Sampling(5, 1, grammar=grammar)
    assert Sampling.from_json(json.loads(json.dumps(sampling.to_json()))) == sampling


def test_a_record_without_a_grammar_is_that_of_an_older_version() -> None:
    data = Sampling(5, 1).to_json()
    assert "grammar" not in data
    assert Sampling.from_json(data).grammar is None
