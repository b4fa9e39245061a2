"""What `workers.engine.base` promises of answers with a grammar, and that an engine without grammars says so."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from tasks.sampling import Grammar
from tests.contract.engines import SAMPLINGS, Rig, outcome, text_of, tokens_of
from tests.contract.runs import check_recovery
from workers.engine.base import InvalidRequest, Request

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dög"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", "(ab|é[0-9]){8,12}"),
    "lark": Grammar("lark", 'start: "<" item ("," item){6,9} ">"\nitem: /[a-z]{1,3}/ | "[" item "]"'),
}


def bound(rig: Rig, rid: str, kind: str, number: int = 0, **fields: Any) -> Request:
    return rig.request(rid, number, **{"max_tokens": 120, "grammar": GRAMMARS[kind]} | fields)


def check(kind: str, text: str) -> None:
    if kind == "schema":
        made = json.loads(text)
        assert list(made) == ["name", "age", "kind"]
        assert 1 <= len(made["name"]) <= 10
        assert 0 <= made["age"] <= 99
        assert made["kind"] in ("cat", "dög")
    elif kind == "regex":
        assert re.fullmatch("(ab|é[0-9]){8,12}", text)
    else:
        assert re.fullmatch(r"<[a-z\[\]]+(,[a-z\[\]]+){6,9}>", text)
        assert text.count("[") == text.count("]")


def test_an_engine_without_grammars_refuses_them(rig: Rig) -> None:
    if rig.engine.profile.structured:
        pytest.skip("this engine has grammars")
    with pytest.raises(InvalidRequest, match="grammar") as caught:
        rig.engine.submit(bound(rig, "a", "regex"))
    assert caught.value.code == "unsupported_parameter"
    assert not rig.engine.has_work()


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", ["schema", "regex"])
def test_an_answer_follows_its_grammar_and_ends_with_it(able: Rig, kind: str, sampling: dict[str, Any]) -> None:
    requests = [bound(able, f"{at}", kind, at, **{**sampling, "seed": at}) for at in range(6)]
    for events in able.run(*requests).values():
        assert events[-1].finish == "stop"
        check(kind, text_of(events))


def test_an_answer_that_is_cut_begins_as_its_grammar_does(able: Rig) -> None:
    tokens, text, finish = outcome(able.run(bound(able, "a", "schema", max_tokens=2))["a"])
    assert (len(tokens), finish) == (2, "length")
    assert '{"name":"'.startswith(text)


def test_bound_and_free_answers_in_one_batch_do_not_change_each_other(able: Rig) -> None:
    requests = [able.request(f"free {name}", at, **one) for at, (name, one) in enumerate(SAMPLINGS.items())]
    for kind in GRAMMARS:
        requests += [bound(able, f"{kind} {name}", kind, 1, **one) for name, one in SAMPLINGS.items()]
    together = able.run(*requests)
    for request in requests:
        assert outcome(able.run(request)[request.rid]) == outcome(together[request.rid])
        assert [bool(event.logprobs) for event in together[request.rid]] == [
            request.sampling.logprobs is not None
        ] * len(together[request.rid])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", GRAMMARS)
def test_resuming_at_every_token_changes_nothing(able: Rig, kind: str, sampling: dict[str, Any]) -> None:
    whole = able.run(bound(able, "a", kind, **sampling))["a"]
    tokens, text, finish = outcome(whole)
    again = []
    for cut in range(len(whole)):
        head = whole[:cut]
        done, emitted = tokens_of(head), len(text_of(head))
        again.append(bound(able, f"cut {cut}", kind, done=done, emitted=emitted, **sampling))
    for request, events in zip(again, able.run(*again).values(), strict=True):
        rest = outcome(events)
        assert [*request.done, *rest[0]] == tokens
        assert text[: request.emitted] + rest[1] == text
        assert rest[2] == finish
    (event,) = able.run(bound(able, "all", kind, done=tokens, emitted=1, **sampling))["all"]
    assert (event.tokens, event.text, event.finish) == ((), text[1:], finish)


def test_after_a_failing_step_bound_answers_go_on(fresh: Rig) -> None:
    if not fresh.engine.profile.structured:
        pytest.skip("this engine has no grammars")
    requests = [bound(fresh, kind, kind, temperature=1.0) for kind in GRAMMARS]
    check_recovery(fresh, requests, 6)


def test_a_grammar_that_cannot_be_used_is_refused_or_costs_only_its_own_answer(able: Rig) -> None:
    with pytest.raises(InvalidRequest, match="regex") as caught:
        able.engine.submit(able.request("a", grammar=Grammar("regex", "(")))
    assert caught.value.code == "invalid_request"
    assert not able.engine.has_work()
    good = able.request("good", 1)
    alone = outcome(able.run(good)["good"])
    steps = able.engine.load().steps
    bad = able.request("bad", grammar=Grammar("regex", "a{1000000}"))
    events = able.run(good, bad)
    assert outcome(events["good"]) == alone
    assert (events["bad"][-1].finish, events["bad"][-1].code) == ("error", "invalid_request")
    assert able.engine.load().steps - steps <= len(alone[0]) + 2  # no step was repeated
    late = dataclasses.replace(able.request("late", grammar=GRAMMARS["regex"]), done=tokens_of(events["good"])[:2])
    assert able.run(late)["late"][-1].finish == "error"


def test_a_grammar_that_leaves_only_tokens_that_end_too_early_ends_the_answer_and_no_step_fails(able: Rig) -> None:
    vocabulary = able.tokenizer.get_vocab()
    ends = tuple(token for token in vocabulary.values() if set(able.tokenizer.decode([token])) == {"a"})
    neighbour = able.request("b", 1)
    bad = able.request("a", grammar=Grammar("regex", "a+b"), stop_token_ids=ends, min_tokens=4)
    events = able.run(bad, neighbour)  # a step that fails would raise
    assert events["a"][-1].code == "invalid_request"
    assert re.search("min_tokens.*regex.*stop_token_ids", events["a"][-1].error or "")
    assert outcome(events["b"]) == outcome(able.run(neighbour)["b"])


def test_a_grammar_that_is_fulfilled_ends_there_though_the_answer_should_be_longer(able: Rig) -> None:
    vocabulary = able.tokenizer.get_vocab()
    ends = tuple(token for token in vocabulary.values() if set(able.tokenizer.decode([token])) == {"a"})
    request = able.request("a", grammar=Grammar("regex", "ba*"), stop_token_ids=ends, min_tokens=4)
    events = able.run(request)["a"]
    assert (text_of(events), events[-1].finish) == ("b", "stop")
