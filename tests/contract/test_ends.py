"""What ends an answer beside its stop texts: tokens that were named, the model's own, and not before its least length."""

from __future__ import annotations

import pytest

from tests.contract.engines import Rig, make, text_of, tokens_of
from workers.engine.base import InvalidRequest


def test_a_named_token_ends_the_answer_and_has_no_text(rig: Rig) -> None:
    free = rig.run(rig.request("free"))["free"]
    stop = tokens_of(free)[5]
    first = tokens_of(free).index(stop)
    events = rig.run(rig.request("a", stop_token_ids=(stop,)))["a"]
    assert tokens_of(events) == tokens_of(free)[: first + 1]
    text = rig.tokenizer.decode(tokens_of(free)[:first], skip_special_tokens=True)
    assert (events[-1].finish, text_of(events)) == ("stop", text)


def test_no_token_ends_the_answer_before_its_least_length(rig: Rig) -> None:
    free = tokens_of(rig.run(rig.request("free"))["free"])
    events = rig.run(rig.request("a", stop_token_ids=(free[0], free[3]), min_tokens=8))["a"]
    made = tokens_of(events)
    assert len(made) >= 8
    assert not {free[0], free[3]} & set(made[:8])
    done = made[:4]  # resumed below the least length
    emitted = sum(len(event.text) for event in events[:4])
    again = rig.request("b", stop_token_ids=(free[0], free[3]), min_tokens=8, done=done, emitted=emitted)
    assert done + tokens_of(rig.run(again)["b"]) == made


def test_the_models_own_end_can_be_ignored() -> None:
    rig = make("fake")
    prompt = rig.tokenizer.encode("<|user|>[tokens=3]<|assistant|>").ids
    ended = rig.run(rig.request("a", prompt=prompt))["a"]
    assert (len(tokens_of(ended)), ended[-1].finish) == (4, "stop")
    ignored = rig.run(rig.request("b", prompt=prompt, ignore_eos=True, max_tokens=9))["b"]
    assert (len(tokens_of(ignored)), ignored[-1].finish) == (9, "length")
    longer = rig.run(rig.request("c", prompt=prompt, min_tokens=7))["c"]
    assert (len(tokens_of(longer)), longer[-1].finish) == (8, "stop")


def test_nonsense_is_refused_by_name(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="min_tokens"):
        rig.engine.submit(rig.request("a", min_tokens=13))
    with pytest.raises(InvalidRequest, match="stop_token_ids"):
        rig.engine.submit(rig.request("a", stop_token_ids=(10**9,)))
