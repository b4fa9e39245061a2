"""What `workers.engine.base` promises of every engine: answers, endings, refusals, cancelling and places."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.contract.engines import Rig, outcome, text_of, tokens_of
from workers.engine.base import InvalidRequest


def test_an_answer_ends_at_max_tokens(rig: Rig) -> None:
    events = rig.run(rig.request("a", max_tokens=9))["a"]
    assert len(tokens_of(events)) == 9
    assert events[-1].finish == "length"
    assert rig.tokenizer.decode(tokens_of(events)) == text_of(events)


def test_one_token_is_an_answer(rig: Rig) -> None:
    events = rig.run(rig.request("a", max_tokens=1))["a"]
    assert (len(events), len(tokens_of(events)), events[0].finish) == (1, 1, "length")


@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_stop_string_ends_an_answer_and_is_not_sent(rig: Rig, width: int) -> None:
    whole = outcome(rig.run(rig.request("a"))["a"])
    at = len(whole[1]) // 2
    stop = whole[1][at : at + width]
    tokens, text, finish = outcome(rig.run(rig.request("a", stop=("never said", stop)))["a"])
    assert text == whole[1][: whole[1].find(stop)]
    assert tokens == whole[0][: len(tokens)]
    assert len(tokens) < len(whole[0]) or whole[1].endswith(stop)
    assert finish == "stop"


def test_an_end_token_ends_an_answer_and_has_no_text(rig: Rig) -> None:
    end = rig.tokenizer.token_to_id("<|end|>")
    done = tokens_of(rig.run(rig.request("a"))["a"])[:3]
    (event,) = rig.run(rig.request("a", done=[*done, end], emitted=0))["a"]
    assert (event.index, event.tokens, event.text, event.finish) == (4, (), rig.tokenizer.decode(done), "stop")


def test_an_answer_that_has_ended_already_finishes_without_a_forward(rig: Rig) -> None:
    whole = rig.run(rig.request("a"))["a"]
    steps = rig.engine.load().steps
    by_length = rig.run(rig.request("a", done=tokens_of(whole), emitted=2))["a"]
    assert [(event.text, event.finish) for event in by_length] == [(text_of(whole)[2:], "length")]
    by_stop = rig.run(rig.request("a", done=tokens_of(whole), emitted=0, stop=(text_of(whole)[1:3],)))["a"]
    assert [(event.text, event.finish) for event in by_stop] == [(text_of(whole)[:1], "stop")]
    assert rig.engine.load().steps == steps


def test_choices_of_a_request_differ(rig: Rig) -> None:
    requests = [rig.request(f"{at}", choice=at, temperature=1.5, seed=11) for at in range(4)]
    answers = [tuple(tokens_of(events)) for events in rig.run(*requests).values()]
    if rig.name != "demo":  # a trained model can be sure of its answer
        assert len(set(answers)) > 1


def test_logprobs_have_the_chosen_token_and_the_best_ones(rig: Rig) -> None:
    for event in rig.run(rig.request("a", logprobs=4))["a"]:
        assert event.logprobs is not None
        (chosen,) = event.logprobs
        assert chosen.logprob <= 0.0
        assert len(chosen.top) == 4
        assert chosen.top[0] == dataclasses.replace(chosen, top=())
        assert [one.logprob for one in chosen.top] == sorted((one.logprob for one in chosen.top), reverse=True)
        assert bytes(chosen.bytes).decode(errors="replace") == chosen.token
    assert all(one.logprobs and not one.logprobs[0].top for one in rig.run(rig.request("a", logprobs=0))["a"])
    assert all(one.logprobs is None for one in rig.run(rig.request("a"))["a"])


def test_a_cancelled_sequence_says_so_and_leaves_the_others_alone(rig: Rig) -> None:
    alone = outcome(rig.run(rig.request("b", 1))["b"])
    requests = [rig.request("a", max_tokens=30), rig.request("b", 1)]
    for request in requests:
        rig.engine.submit(request)
    seen = [event for _ in range(4) for event in rig.engine.step()]
    rig.engine.cancel("a")
    rig.engine.cancel("a")
    rig.engine.cancel("nobody")
    rest = [event for events in (rig.engine.step() for _ in range(40)) for event in events]
    of_a = [event for event in seen + rest if event.rid == "a"]
    assert of_a[-1].finish == "cancelled"
    assert [event.finish for event in of_a[:-1]] == [None] * (len(of_a) - 1)
    assert text_of(of_a) == rig.tokenizer.decode(tokens_of(of_a))
    assert outcome([event for event in seen + rest if event.rid == "b"]) == alone
    assert not rig.engine.has_work()


def test_a_waiting_sequence_can_be_cancelled_and_its_id_used_again(rig: Rig) -> None:
    rig.engine.submit(rig.request("a"))
    rig.engine.cancel("a")
    rig.engine.submit(rig.request("a", max_tokens=2))
    events = rig.engine.step() + rig.engine.step() + rig.engine.step()
    assert [event.finish for event in events] in (["cancelled", None, "length"], ["cancelled", "length"])


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": [], "emitted": 0}, "empty"),
    "token": ({"prompt": [10**6]}, "vocabulary"),
    "negative token": ({"prompt": [3, -1]}, "vocabulary"),
    "done": ({"done": [10**6]}, "vocabulary"),
    "emitted": ({"emitted": -1}, "emitted"),
    "choice": ({"choice": -1}, "choice"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "temperature": ({"temperature": -0.1}, "temperature"),
    "not a number": ({"temperature": float("nan")}, "temperature"),
    "top_p": ({"top_p": 0.0}, "top_p"),
    "top_k": ({"top_k": -1}, "top_k"),
    "min_p": ({"min_p": 1.1}, "min_p"),
    "presence": ({"presence_penalty": float("inf")}, "presence_penalty"),
    "frequency": ({"frequency_penalty": float("-inf")}, "frequency_penalty"),
    "repetition": ({"repetition_penalty": 0.0}, "repetition_penalty"),
    "logprobs": ({"logprobs": 21}, "logprobs"),
    "bias": ({"logit_bias": {0: float("nan")}}, "logit_bias"),
    "bias token": ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
    "stop": ({"stop": ("",)}, "stop"),
}


@pytest.mark.parametrize(("fields", "word"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_is_refused_with_a_message_that_names_the_fault(
    rig: Rig, fields: dict[str, Any], word: str
) -> None:
    request = rig.request("a", **fields)
    if "prompt" in fields:
        request = dataclasses.replace(request, prompt=fields["prompt"])
    with pytest.raises(InvalidRequest, match=word) as caught:
        rig.engine.submit(request)
    assert caught.value.code == "invalid_request"
    assert not rig.engine.has_work()


def test_a_request_longer_than_the_context_is_refused_and_one_that_fills_it_is_not(rig: Rig) -> None:
    limit = rig.engine.profile.max_model_len
    request = rig.request("a")
    left = limit - len(request.prompt)
    with pytest.raises(InvalidRequest, match=str(limit)) as caught:
        rig.engine.submit(rig.request("a", max_tokens=left + 1))
    assert caught.value.code == "context_length_exceeded"
    rig.engine.submit(rig.request("a", max_tokens=left))
    rig.engine.cancel("a")
    assert rig.engine.step()[0].finish == "cancelled"


def test_an_id_that_is_live_is_refused(rig: Rig) -> None:
    rig.engine.submit(rig.request("a"))
    with pytest.raises(InvalidRequest, match="'a'"):
        rig.engine.submit(rig.request("a", 1))
    assert len(tokens_of(rig.drain()["a"])) == 12


def test_more_requests_than_places_wait_their_turn(rig: Rig) -> None:
    places = rig.engine.max_num_seqs
    requests = [rig.request(f"{at}", at, max_tokens=4 + at % 5) for at in range(3 * places)]
    for request in requests:
        rig.engine.submit(request)
    assert rig.engine.load().waiting == 3 * places
    for _ in range(3):  # their prompts may take more than one
        rig.engine.step()
        load = rig.engine.load()
        if load.running == places:
            break
    assert (load.running, load.waiting) == (places, 2 * places)
    assert 0.0 < load.kv_used <= 1.0
    events = rig.drain()
    assert all(events[request.rid][-1].finish == "length" for request in requests)
    load = rig.engine.load()
    assert (load.running, load.waiting, load.kv_used) == (0, 0, 0.0)


def test_cancelled_sequences_free_their_cache(rig: Rig) -> None:
    requests = [rig.request(f"{at}", at, max_tokens=40) for at in range(3)]
    for request in requests:
        rig.engine.submit(request)
    for _ in range(6):
        rig.engine.step()
    assert rig.engine.load().kv_used > 0.0
    for request in requests:
        rig.engine.cancel(request.rid)
    assert rig.engine.load().kv_used == 0.0
    rig.drain()


def test_closing_twice_is_fine(fresh: Rig) -> None:
    fresh.engine.submit(fresh.request("a"))
    fresh.engine.step()
    fresh.engine.close()
    fresh.engine.close()
    assert not fresh.engine.has_work()
    assert fresh.engine.step() == []
