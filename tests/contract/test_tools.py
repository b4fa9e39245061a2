"""Calls of tools that a model has to make: whatever it would like to say, they can be read and fit their schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.calls import read_calls
from api.dialects import DIALECTS, grammar_of_calls
from tests.contract.engines import Rig, text_of, tokens_of

FUNCTIONS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"town": {"enum": ["Bern", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["town", "days"],
        "additionalProperties": False,
    },
    "time": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_made_and_a_resumed_one_is_the_same(able: Rig, dialect: Any, seed: int) -> None:
    grammar = grammar_of_calls(dialect, FUNCTIONS, many=False)
    fields: dict[str, Any] = {"grammar": grammar, "max_tokens": 150, "temperature": 1.0, "seed": seed}
    events = able.run(able.request("a", seed, **fields))["a"]
    said, calls = read_calls(dialect, "job", 0, text_of(events))
    assert (events[-1].finish, said, len(calls)) == ("stop", "", 1)
    made = calls[0]["function"]
    arguments = json.loads(made["arguments"])
    assert made["name"] in FUNCTIONS
    assert arguments.keys() == FUNCTIONS[made["name"]]["properties"].keys()
    done = tokens_of(events)[: len(tokens_of(events)) // 2]
    emitted = sum(len(event.text) for event in events[: len(done)])
    again = able.run(able.request("b", seed, done=done, emitted=emitted, **fields))["b"]
    assert done + tokens_of(again) == tokens_of(events)


def test_several_calls_may_follow_each_other(able: Rig) -> None:
    for dialect in DIALECTS.values():
        grammar = grammar_of_calls(dialect, FUNCTIONS, many=True)
        events = able.run(able.request("a", grammar=grammar, max_tokens=200, temperature=1.0, seed=1))["a"]
        said, calls = read_calls(dialect, "job", 0, text_of(events))
        assert calls
        assert said == "" or events[-1].finish == "length"  # what was cut before its name is no call
