"""What is vLLM's own: its scheduler, its cache, its limits, and its failures. Run by `make test-vllm`."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract.engines import DEMO, Rig, outcome, tokens_of, vllm_engine, vllm_folder, vllm_model
from tests.contract.runs import check_crowded, run_on
from tests.tiny_models import CHAT_TEMPLATE, CONTEXT, END
from workers.engine.base import EngineDead
from workers.engine.registry import EngineSpec

FAILED = RuntimeError, FloatingPointError
BLOCK = 32
BLOCK_BYTES = BLOCK * 2 * 2 * 2 * 32 * 4  # two layers, keys and values, two heads of 32 floats


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def build(**arguments: Any) -> Rig:
        engine = vllm_engine(block_size=BLOCK, **arguments)
        rigs.append(Rig("vllm", engine, lambda number: f"Line number {number} says that water falls."))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.engine.close()


def test_greedy_answers_are_those_of_generate(make: Callable[..., Rig]) -> None:
    rig = make()
    model: Any = AutoModelForCausalLM.from_pretrained(vllm_folder(), dtype=torch.float32).eval()
    requests = [rig.request(f"{at}", prompt=[at, *range(3 * at, 4 * at + 5)], max_tokens=24) for at in range(60)]
    for request, events in zip(requests, rig.run(*requests).values(), strict=True):
        ids = torch.tensor([request.prompt])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=0)
        answer, made = out[0, len(request.prompt) :].tolist(), tokens_of(events)
        assert made == answer[: len(made)]
        assert len(made) == 24 or made[-1] == rig.tokenizer.token_to_id(END)


def test_a_prompt_longer_than_a_forward_is_read_in_parts(make: Callable[..., Rig]) -> None:
    prompt = [at * 7 % 256 for at in range(200)]
    whole, parts = make(), make(max_num_batched_tokens=32)
    request = whole.request("a", prompt=prompt, temperature=1.0, logprobs=2)
    expected = outcome(whole.run(request)["a"])
    parts.engine.submit(request)
    assert [parts.engine.step() for _ in range(6)] == [[]] * 6  # rows are sampled there, and count for nothing
    assert outcome(parts.drain(request)["a"]) == expected


def test_sequences_that_the_cache_cannot_hold_together_take_turns(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = make(max_model_len=160, kv_cache_memory_bytes=9 * BLOCK_BYTES), make()
    assert small.engine.profile.max_model_len == 160
    scheduler: Any = small.engine._backend._scheduler  # type: ignore[attr-defined]
    put_back: list[str] = []
    preempt = scheduler._preempt_request

    def note(request: Any, *given: Any, **named: Any) -> None:
        put_back.append(request.request_id)
        preempt(request, *given, **named)

    monkeypatch.setattr(scheduler, "_preempt_request", note)
    check_crowded(small, large)
    assert put_back


def test_a_shared_prefix_changes_no_answer(make: Callable[..., Rig]) -> None:
    shared, alone = make(), make(enable_prefix_caching=False)
    prompt = [at * 11 % 256 for at in range(5 * BLOCK)]
    whole = outcome(alone.run(alone.request("a", prompt=prompt, temperature=1.0, max_tokens=40))["a"])
    for cut in (0, 1, 20, 39):
        request = shared.request("a", prompt=prompt, temperature=1.0, max_tokens=40, done=whole[0][:cut])
        assert [*request.done, *tokens_of(shared.run(request)["a"])] == whole[0]


def test_an_answer_may_fill_the_context_and_be_resumed_at_its_last_token(make: Callable[..., Rig]) -> None:
    rig = make(max_model_len=64)
    prompt = list(range(30))
    whole = outcome(rig.run(rig.request("a", prompt=prompt, max_tokens=34))["a"])
    assert (len(whole[0]), whole[2]) == (34, "length")
    rest = rig.run(rig.request("a", prompt=prompt, max_tokens=34, done=whole[0][:33]))["a"]
    assert tokens_of(rest) == whole[0][33:]


def test_what_is_not_a_number_ends_one_answer_alone(make: Callable[..., Rig]) -> None:
    rig = make(max_model_len=160, kv_cache_memory_bytes=12 * BLOCK_BYTES)
    good = [rig.request(f"{at}", at, max_tokens=40, logit_bias={200: -1000.0}) for at in range(6)]
    expected = rig.run(*good)
    with torch.inference_mode():
        vllm_model(rig.engine._backend).model.embed_tokens.weight[200] = torch.nan
    bad = rig.request("bad", prompt=[200] * 100)
    events = run_on(rig, FAILED, good[0], bad, *good[1:])
    assert (events["bad"][-1].finish, events["bad"][-1].code) == ("error", "engine_error")
    assert "no numbers" in (events["bad"][-1].error or "")
    for request in good:
        assert outcome(events[request.rid]) == outcome(expected[request.rid])


def test_what_a_failed_forward_left_in_the_cache_is_gone(make: Callable[..., Rig]) -> None:
    rig = make(max_model_len=160, kv_cache_memory_bytes=12 * BLOCK_BYTES)
    requests = [rig.request(f"{at}", at) for at in range(3)]
    expected = rig.run(*requests)
    backend: Any = rig.engine._backend
    model, caches = vllm_model(backend), list(backend._runner.kv_caches)
    assert len(caches) == 2

    def spoil(**_: Any) -> None:
        del model.forward
        for cache in caches:
            cache.fill_(torch.nan)
        raise RuntimeError("made to fail")

    model.forward = spoil
    events = run_on(rig, FAILED, *requests)
    for request in requests:
        assert outcome(events[request.rid]) == outcome(expected[request.rid])


def test_a_sequence_that_vllm_refuses_ends_alone(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make()
    engine: Any = rig.engine._backend._engine  # type: ignore[attr-defined]
    add = engine.add_request

    def refuse(rid: str, *given: Any) -> None:
        if rid == "bad":
            raise RuntimeError("refused")
        add(rid, *given)

    monkeypatch.setattr(engine, "add_request", refuse)
    good = [rig.request(f"{at}", at) for at in range(3)]
    expected = rig.run(*good)
    events = run_on(rig, FAILED, rig.request("bad"), *good)
    assert [(event.finish, event.code) for event in events["bad"]] == [("error", "engine_error")]
    assert all(outcome(events[request.rid]) == outcome(expected[request.rid]) for request in good)


def test_vllm_may_neither_end_a_sequence_nor_take_another_token(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    backend: Any = rig.engine._backend
    with monkeypatch.context() as patch:
        patch.setattr(backend._scheduler, "max_model_len", 50)
        (*_, last) = run_on(rig, FAILED, rig.request("a", max_tokens=60))["a"]
    assert (last.finish, last.error) == ("error", "RuntimeError: vLLM ended a sequence by itself: length")
    with monkeypatch.context() as patch:
        patch.setattr(backend._desk, "_left", lambda logits, _: logits.fill_(0.0))
        (*_, last) = run_on(rig, FAILED, rig.request("a"))["a"]
    assert last.finish == "error"
    assert "was chosen" in (last.error or "")


def test_a_reset_that_leaves_something_behind_ends_the_engine(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.engine.submit(rig.request("a"))
    rig.engine.step()
    backend: Any = rig.engine._backend
    backend._desk.sequences.clear()  # so that it is not dropped
    with pytest.raises(EngineDead, match="kept something"):
        rig.engine.recover()


def test_the_profile_says_what_the_files_say() -> None:
    lines: list[str] = []
    spec = EngineSpec(vllm_folder(), max_num_seqs=4, progress=lines.append)
    engine = vllm_engine(spec)
    profile = engine.profile
    assert (profile.max_model_len, engine.max_num_seqs, profile.structured) == (CONTEXT, 4, True)
    assert (profile.chat_template, profile.special_tokens["eos_token"]) == (CHAT_TEMPLATE, END)
    backend: Any = engine._backend
    assert backend._engine.model_config.dtype == torch.float32  # that of the checkpoint, which vLLM would have halved
    cache = backend._engine.vllm_config.cache_config
    assert 4 * CONTEXT <= cache.num_gpu_blocks * cache.block_size <= 4 * (CONTEXT + cache.block_size)
    assert lines[-1] == "ready"
    engine.close()
    engine = vllm_engine(EngineSpec(vllm_folder(), dtype="bfloat16", max_model_len=100, max_num_seqs=4))
    backend = engine._backend
    assert (engine.profile.max_model_len, backend.capacity) == (100, 100)
    assert backend._engine.model_config.dtype == torch.bfloat16
    engine.close()


def test_what_cannot_be_loaded_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"'cuda'.*'cpu'"):
        vllm_engine(EngineSpec(vllm_folder(), device="cuda"))
    with pytest.raises(ValueError, match="floaty"):
        vllm_engine(EngineSpec(vllm_folder(), dtype="floaty"))
    with pytest.raises(RuntimeError, match="head_dim=16"):  # found when it runs, so it is run before it is ready
        vllm_engine(EngineSpec(vllm_folder(16)))


def test_closing_frees_the_weights() -> None:
    engine = vllm_engine()
    weights = weakref.ref(vllm_model(engine._backend).model.embed_tokens.weight)
    engine.close()
    gc.collect()
    assert weights() is None


def test_it_needs_nothing_of_the_engine_transformers() -> None:
    look = "import sys, workers.engine.vllm, workers.engine.vllm_backend; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=100, check=True)
    assert not {"workers.engine.paged", "workers.engine.attention", "workers.engine.continuous"} & set(
        done.stdout.split()
    )


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")
def test_the_demo_model_counts() -> None:
    engine = vllm_engine(EngineSpec(str(DEMO), device="cpu", max_num_seqs=8))
    rig = Rig("vllm", engine, lambda number: f"<|user|>Count from {number} to {number + 5}.<|end|><|assistant|>")
    for number, events in enumerate(rig.run(*(rig.request(f"{at}", at, max_tokens=60) for at in range(8))).values()):
        assert "".join(event.text for event in events) == ", ".join(map(str, range(number, number + 6)))
        assert events[-1].finish == "stop"
    engine.close()
