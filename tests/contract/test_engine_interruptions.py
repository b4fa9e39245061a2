"""What `workers.engine.base` promises of every engine: nothing that happens to a batch changes an answer in it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.engines import (
    SAMPLINGS,
    VLLM,
    Rig,
    check_stream,
    fail_once,
    outcome,
    poison,
    text_of,
    tiny_engine,
    tokens_of,
)
from tests.contract.runs import check_crowded, check_recovery, run_on
from workers.engine.base import EngineDead, Event

own = pytest.mark.skipif(VLLM, reason="about the engine transformers")


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_resuming_at_every_token_changes_nothing(rig: Rig, sampling: dict[str, Any]) -> None:
    whole = rig.run(rig.request("a", **sampling))["a"]
    tokens, text, finish = outcome(whole)
    again = []
    for cut in range(len(whole)):
        head = whole[:cut]
        done, emitted = tokens_of(head), len(text_of(head))
        again.append(rig.request(f"cut {cut}", done=done, emitted=emitted, **sampling))
    for request, events in zip(again, rig.run(*again).values(), strict=True):
        rest = outcome(events)
        assert [*request.done, *rest[0]] == tokens
        assert text[: request.emitted] + rest[1] == text
        assert rest[2] == finish
        assert [bool(event.logprobs) for event in events] == ["logprobs" in sampling] * len(events)


def test_resuming_with_a_stop_string_ahead_changes_nothing(rig: Rig) -> None:
    text = text_of(rig.run(rig.request("a"))["a"])
    stop = (text[len(text) // 2 :][:3],)
    whole = rig.run(rig.request("a", stop=stop))["a"]
    for cut in range(len(whole)):
        head, done = whole[:cut], tokens_of(whole[:cut])
        rest = rig.run(rig.request("a", stop=stop, done=done, emitted=len(text_of(head))))["a"]
        assert (done + tokens_of(rest), text_of(head) + text_of(rest)) == outcome(whole)[:2]
        assert rest[-1].finish == "stop"


def test_a_seeded_answer_does_not_depend_on_its_neighbours(rig: Rig) -> None:
    requests = [
        rig.request(f"{name} {number}", number, **{**sampling, "seed": number})
        for number in range(5)
        for name, sampling in SAMPLINGS.items()
    ]
    together = rig.run(*requests)
    for request in requests:
        assert outcome(rig.run(request)[request.rid]) == outcome(together[request.rid])


def test_after_a_failing_step_every_answer_goes_on(fresh: Rig) -> None:
    requests = [fresh.request(f"{at}", at, **sampling) for at, sampling in enumerate(SAMPLINGS.values())]
    check_recovery(fresh, requests, 5)


def test_a_sequence_that_always_fails_ends_with_an_error_and_the_others_go_on(fresh: Rig) -> None:
    good = [fresh.request(f"{at}", at) for at in range(3)]
    whole = fresh.run(*good)
    prompt = fresh.tokenizer.encode(poison(fresh, "bad")).ids
    events = run_on(fresh, RuntimeError, good[0], fresh.request("bad", prompt=prompt), *good[1:])
    for request in good:
        assert outcome(events[request.rid]) == outcome(whole[request.rid])
    (last,) = [event for event in events["bad"] if event.finish]
    assert (last.finish, last.code) == ("error", "engine_error")
    assert "fail" in (last.error or "")
    assert outcome(fresh.run(good[0])["0"]) == outcome(whole["0"])


def test_a_lost_device_ends_the_engine(fresh: Rig) -> None:
    fresh.engine.submit(fresh.request("a"))
    fail_once(fresh, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="CUDA"):
        fresh.engine.step()
    with pytest.raises(EngineDead, match="device-side assert"):
        fresh.engine.recover()


@own
def test_a_prompt_longer_than_a_forward_is_read_in_parts() -> None:
    prompt = [at * 7 % 256 for at in range(200)]
    whole, parts = (Rig("transformers", tiny_engine(max_batch_tokens=size), str) for size in (512, 32))
    request = whole.request("a", prompt=prompt)
    expected = outcome(whole.run(request)["a"])
    parts.engine.submit(request)
    assert [parts.engine.step() for _ in range(6)] == [[]] * 6
    assert outcome(parts.drain(request)["a"]) == expected


@own
def test_sequences_that_the_cache_cannot_hold_together_take_turns() -> None:
    small, large = (Rig("transformers", tiny_engine(kv_tokens=size), str) for size in (160, 4096))
    assert small.engine.profile.max_model_len == 160
    check_crowded(small, large)


def test_an_answer_that_cannot_be_put_into_text_ends_alone(fresh: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [fresh.request(rid, number) for number, rid in enumerate("abc")]
    whole = fresh.run(*requests)
    for request in requests:
        fresh.engine.submit(request)
    events = {request.rid: list[Event]() for request in requests}
    for step in range(200):
        for event in fresh.engine.step():
            events[event.rid].append(event)
        if step == 5:
            sequence: Any = fresh.engine._live["b"]
            monkeypatch.setattr(sequence, "_text", None)
    assert not fresh.engine.has_work()
    check_stream(requests[1], events["b"])
    assert (events["b"][-1].finish, events["b"][-1].code) == ("error", "engine_error")
    assert [outcome(events[rid]) for rid in "ac"] == [outcome(whole[rid]) for rid in "ac"]
