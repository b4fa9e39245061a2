"""The engine "onnx" beside `generate()`, its batches, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.contract.engines import DEMO, Rig, make, outcome
from tests.contract.test_parity import compare, demo_prompts, greedy, random_prompts
from tests.onnx_exports import HAS_BUILDER, checkpoint, export
from tests.tiny_models import CHAT_TEMPLATE, CONTEXT, END, tiny_model
from workers.engine.batching import BatchingEngine
from workers.engine.onnx import assemble, load
from workers.engine.onnx_graph import Graph
from workers.engine.paged import Budget
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


def test_every_end_token_of_the_export_ends_an_answer(tmp_path: Path) -> None:
    folder = Path(changed(tiny_export(), tmp_path / "ends", lambda model: model.update(eos_token_id=[3, 4])))
    assert load(EngineSpec(str(folder))).eos >= {3, 4}


def test_a_prompt_longer_than_a_forward_is_read_in_parts_while_others_decode() -> None:
    rigs = [Rig("onnx", engine(tiny_export(), max_batch_tokens=size), str) for size in (512, 32)]
    requests = [
        rigs[0].request("short", prompt=[9, 8, 7], max_tokens=20),
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
    assert [[event.rid for event in of_step] for of_step in events] == [["short"]] * 6
    parts_engine.cancel("short")  # its row goes to the one that is being read
    rest = rigs[1].drain()
    assert {rid: outcome(rest[rid]) for rid in ("a", "b")} == {rid: outcome(whole[rid]) for rid in ("a", "b")}


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
    graph = small.engine._backend._graph
    while small.engine.has_work():
        events += small.engine.step()
        used.append(small.engine.load().kv_used)
        assert graph.size[0] * graph.size[1] <= 160
    for request in requests:
        assert outcome([each for each in events if each.rid == request.rid]) == outcome(expected[request.rid])
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
    for request in (good[0], rig.request("bad", 5), *good[1:]):
        rig.engine.submit(request)
    events = []
    while rig.engine.has_work():
        try:
            events += rig.engine.step()
        except FloatingPointError:
            rig.engine.recover()
    for request in good:
        assert outcome([each for each in events if each.rid == request.rid]) == outcome(whole[request.rid])
    assert [each.code for each in events if each.rid == "bad" and each.finish] == ["engine_error"]


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    shutil.copytree(source, folder)
    config = json.loads((folder / "genai_config.json").read_text())
    change(config["model"])
    (folder / "genai_config.json").write_text(json.dumps(config))
    return str(folder)


def test_what_is_no_export_for_a_cpu_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    command = r"onnxruntime_genai\.models\.builder"
    with pytest.raises(ValueError, match=rf"genai_config\.json.*{command}"):
        build("onnx", EngineSpec(str(checkpoint("llama"))))
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "cuda": lambda model: model["decoder"]["session_options"].update(provider_options=[{"cuda": {}}]),
        "one graph": lambda model: model["decoder"].pop("filename"),
        "wants past_key_values.0.key": lambda model: model["decoder"]["inputs"].update(past_key_names="other.%d.key"),
        "no input past_key_values.2.key": lambda model: model["decoder"].update(num_hidden_layers=3),
        "batched": lambda model: model["decoder"].update(head_size=8),
    }
    for word, change in changes.items():
        path = changed(tiny_export(), tmp_path / word, change)
        with pytest.raises(ValueError, match=rf"{word}.*{command}"):
            build("onnx", EngineSpec(path))


@pytest.mark.parametrize(("field", "value"), [("device", "cuda"), ("dtype", "bfloat16"), ("dtype", "float16")])
def test_a_device_or_dtype_that_it_has_not_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} = '{value}'"):
        build("onnx", EngineSpec(str(tiny_export()), **{field: value}))


def test_a_graph_whose_batches_answer_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Graph.run

    def careless(self: Graph, first: int, tokens: Any, lengths: Any) -> Any:  # a padded row reads its padding
        return run(self, first, tokens, [max(lengths)] * len(lengths))

    monkeypatch.setattr(Graph, "run", careless)
    with pytest.raises(ValueError, match="batched"):
        build("onnx", EngineSpec(str(tiny_export())))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tiny_export())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"penstock\[onnx\]"):
        build("onnx", EngineSpec(path))
