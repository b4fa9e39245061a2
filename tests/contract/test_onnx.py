"""The engine "onnx" beside `generate()`, and its batches."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contract.engines import DEMO, Rig, make, outcome, tokens_of
from tests.contract.runs import run_on
from tests.contract.test_parity import compare, demo_prompts, greedy, random_prompts
from tests.onnx_exports import HAS_BUILDER, checkpoint, export
from tests.tiny_models import CHAT_TEMPLATE, CONTEXT, END, tiny_model
from workers.engine.base import Event
from workers.engine.batching import BatchingEngine
from workers.engine.budget import Budget
from workers.engine.onnx import assemble, load
from workers.engine.onnx_graph import Graph
from workers.engine.registry import EngineSpec, build

pytestmark = pytest.mark.skipif(not HAS_BUILDER, reason="onnxruntime-genai is not installed")


def tiny_export(family: str = "llama") -> Path:
    return export(checkpoint(family))


def engine(folder: Path, **limits: int) -> BatchingEngine:
    budget = {"max_num_seqs": 16, "kv_tokens": 8192, "max_batch_tokens": 128, "page_size": 16} | limits
    return assemble(load(EngineSpec(str(folder))), Budget(**budget))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2"])
def test_an_export_answers_as_generate_does(family: str) -> None:
    compare(tiny_model(family), random_prompts(60), lambda asked: greedy(engine(tiny_export(family)), asked))


def test_an_export_without_a_pruned_head_answers_the_same() -> None:
    prompts = dict(enumerate(random_prompts(8)))
    whole = engine(export(checkpoint("llama"), options=()))
    assert greedy(whole, prompts) == greedy(engine(tiny_export()), prompts)


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")
def test_the_exported_demo_model_answers_as_generate_does() -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    prompts = demo_prompts(AutoTokenizer.from_pretrained(DEMO))
    compare(model, prompts, lambda asked: greedy(engine(export(DEMO)), asked))


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantised_exports_run(precision: str) -> None:
    prompts = dict(enumerate(demo_prompts(AutoTokenizer.from_pretrained(DEMO))[:20]))
    whole, small = (greedy(engine(export(DEMO, name)), prompts) for name in ("fp32", precision))
    same = sum(whole[number][:4] == small[number][:4] for number in prompts)
    assert same > len(prompts) // 2


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")
def test_an_export_tells_of_itself_what_its_model_does() -> None:
    ours, exported = (
        build(name, EngineSpec(path)) for name, path in [("transformers", str(DEMO)), ("onnx", str(export(DEMO)))]
    )
    for field in ("tokenizer", "chat_template", "special_tokens", "max_model_len", "vocab_size", "structured"):
        assert getattr(ours.profile, field) == getattr(exported.profile, field)
    assert ours.profile.sampling.items() <= exported.profile.sampling.items()
    assert ours._eos == exported._eos


def test_the_context_is_the_exports_own_or_a_shorter_one() -> None:
    spec = EngineSpec(str(tiny_export()), max_num_seqs=2)
    lines: list[str] = []
    whole = build("onnx", EngineSpec(spec.path, max_num_seqs=2, progress=lines.append))
    assert (whole.profile.max_model_len, whole.max_num_seqs, lines[-1]) == (CONTEXT, 2, "ready")
    assert whole.profile.chat_template == CHAT_TEMPLATE
    assert whole.profile.special_tokens["eos_token"] == END
    for asked, given in ((100, 100), (10**6, CONTEXT)):
        assert build("onnx", EngineSpec(spec.path, max_model_len=asked)).profile.max_model_len == given


def test_a_prompt_longer_than_a_forward_is_read_in_parts_while_others_decode() -> None:
    rigs = [Rig("onnx", engine(tiny_export(), max_batch_tokens=size), str) for size in (512, 32)]
    requests = [
        rigs[0].request("short", prompt=[9, 8, 7], max_tokens=20),
        rigs[0].request("next", prompt=[6, 5], max_tokens=20),
        rigs[0].request("a", prompt=[at * 7 % 256 for at in range(200)]),
        rigs[0].request("b", prompt=[at * 11 % 256 for at in range(90)]),
    ]
    whole, parts = (rig.run(*requests) for rig in rigs)
    for request in requests:
        assert outcome(parts[request.rid]) == outcome(whole[request.rid])
    parts_engine = rigs[1].engine
    for request in requests:
        parts_engine.submit(request)
    events = [parts_engine.step() for _ in range(6)]
    assert [[event.rid for event in of_step] for of_step in events] == [["short", "next"]] * 6
    parts_engine.cancel("short")  # the next one moves to its row, and the one that is being read to that one's
    rest = rigs[1].drain()
    assert {rid: outcome(rest[rid]) for rid in ("a", "b")} == {rid: outcome(whole[rid]) for rid in ("a", "b")}
    assert tokens_of(events_of("next", *events)) + tokens_of(rest["next"]) == tokens_of(whole["next"])


def test_sequences_that_the_cache_cannot_hold_together_take_turns() -> None:
    small, large = (Rig("onnx", engine(tiny_export(), kv_tokens=size), str) for size in (160, 8192))
    assert small.engine.profile.max_model_len == 160
    requests = [
        small.request(f"{at}", prompt=[at, *range(40, 60 + 3 * at)], max_tokens=60, temperature=at % 2, seed=at)
        for at in range(8)
    ]
    expected = large.run(*requests)
    used = []
    for request in requests:
        small.engine.submit(request)
    events = []
    backend: Any = small.engine._backend
    graph = backend._graph
    while small.engine.has_work():
        events += small.engine.step()
        assert list(backend._waiting) == sorted(backend._waiting)  # who came last gives way, to the front of the line
        running = [row.sequence.rid for row in backend._rows]
        assert max(running, default="") < min(backend._waiting, default="9")
        used.append(small.engine.load().kv_used)
        assert graph.size[0] * graph.size[1] <= 160
    for request in requests:
        assert outcome(events_of(request.rid, events)) == outcome(expected[request.rid])
    assert 0.5 < max(used) <= 1.0
    assert used[-1] == 0.0


def test_what_earlier_sequences_left_in_a_row_is_never_read() -> None:
    rig = make("onnx")
    requests = [rig.request(f"{at}", at, max_tokens=20 + at) for at in range(3)]
    expected = {rid: outcome(events) for rid, events in rig.run(*requests).items()}
    graph: Any = rig.engine._backend._graph
    for cache in graph._caches.values():
        cache.fill_(float("nan"))
    assert {rid: outcome(events) for rid, events in rig.run(*requests).items()} == expected


def test_a_sequence_whose_logits_are_no_numbers_ends_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make("onnx")
    good = [rig.request(f"{at}", at) for at in range(3)]
    whole = rig.run(*good)
    run = Graph.run

    def broken(self: Graph, first: int, tokens: Any, lengths: Any) -> Any:
        logits = run(self, first, tokens, lengths)
        rows = rig.engine._backend._rows[first : first + len(tokens)]
        for at, row in enumerate(rows):
            if row.sequence.rid == "bad" and len(row.sequence.tokens) == 2:
                logits[at] = float("nan")
        return logits

    monkeypatch.setattr(Graph, "run", broken)
    events = run_on(rig, FloatingPointError, good[0], rig.request("bad", 5), *good[1:])
    for request in good:
        assert outcome(events[request.rid]) == outcome(whole[request.rid])
    assert [each.code for each in events["bad"] if each.finish] == ["engine_error"]


def test_closing_frees_the_weights() -> None:
    running = engine(tiny_export())
    backend: Any = running._backend
    session = weakref.ref(backend._graph._session)
    running.close()
    assert session() is None


def events_of(rid: str, *steps: list[Event]) -> list[Event]:
    return [event for step in steps for event in step if event.rid == rid]


def test_a_failing_step_is_blamed_on_those_that_were_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig("onnx", engine(tiny_export(), max_num_seqs=2), str)
    backend: Any = rig.engine._backend

    def fail(*given: Any) -> None:
        raise RuntimeError("made to fail")

    for at in range(3):
        rig.engine.submit(rig.request(f"{at}", prompt=[at + 5, 6, 7]))
    rig.engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(Graph, "run", fail)
        with pytest.raises(RuntimeError):
            rig.engine.step()
    assert backend.batch() == ["0", "1"]
    rig.engine.recover()
    rig.engine.step()
    rig.engine.cancel("1")
    rig.engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(backend.sampler, "choose", fail)
        with pytest.raises(RuntimeError):
            rig.engine.step()
    assert backend.batch() == ["0", "2"]
