"""A worker with several GPUs: where the layers go, and what is refused. Parts on disk stand for GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.catalog import ModelEntry
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tests.tiny_models import fast_tokenizer, tiny_model
from workers import runtime
from workers.engine import loading, placement
from workers.engine.base import Request
from workers.engine.batching import BatchingEngine
from workers.engine.paged import PagedBackend
from workers.engine.registry import EngineSpec, build
from workers.engine.serial import SerialBackend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_are_not_there_are_not_replaced_by_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"gpus is set, and CUDA finds no GPU here: .* set device = 'cpu'"):
        loading.load(EngineSpec("models/demo", gpus=1))
    with pytest.raises(ValueError, match=r"device = 'cuda', and CUDA finds no GPU here: leave device out"):
        loading.load(EngineSpec("models/demo", device="cuda"))


def test_a_model_is_spread_over_the_gpus_that_its_worker_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement.device_map(CUDA, 2) == "auto"
    assert placement.device_map(CUDA, 1) == placement.device_map(CUDA, 0) == "cuda"
    assert placement.device_map(CPU, 2) == "cpu"
    with pytest.raises(ValueError, match="given 3 GPUs, and CUDA finds 2"):
        placement.device_map(CUDA, 3)


def test_what_does_not_fit_on_the_gpus_is_refused() -> None:
    parts = {"model.embed_tokens": 0, "model.layers.0": 1, "model.layers.1": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match="2 of 4 parts of the model do not fit on its GPUs"):
        placement.check_placed(SimpleNamespace(hf_device_map=parts))
    placement.check_placed(SimpleNamespace(hf_device_map={"model": 0, "lm_head": 1}))
    placement.check_placed(SimpleNamespace())


def test_loading_asks_whether_all_of_the_model_is_on_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    made = SimpleNamespace(hf_device_map={"model": 0, "lm_head": "cpu"})
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *given, **more: made)
    with pytest.raises(ValueError, match="1 of 2 parts"):
        loading._load_weights(EngineSpec(str(tmp_path)), CUDA)


def test_the_fullest_gpu_sets_the_size_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ({0: 100, 1: 60}.get(device, 80), 200))
    spread = SimpleNamespace(device=CUDA, hf_device_map={"a": 0, "b": 1, "c": 1})
    assert placement.free_memory(spread) == 120
    assert placement.free_memory(SimpleNamespace(device=CUDA)) == 80


def answer(engine: BatchingEngine) -> list[int]:
    engine.submit(Request("r", [5, 6, 7, 8], Sampling(max_tokens=12, seed=0, temperature=0.0)))
    tokens: list[int] = []
    while engine.has_work():
        tokens += [token for event in engine.step() for token in event.tokens]
    engine.close()
    return tokens


def test_a_model_in_several_places_gives_its_answers_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    fast_tokenizer().save_pretrained(tmp_path)
    said: list[str] = []
    spec = EngineSpec(str(tmp_path), device="cpu", max_num_seqs=2, progress=said.append)
    whole: Any = build("transformers", spec)
    assert isinstance(whole._backend, PagedBackend)
    parts = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head"), "cpu")
    parts |= {"model.layers.1": "disk", "model.norm": "disk"}
    monkeypatch.setattr(placement, "device_map", lambda device, gpus: parts)
    spread: Any = build("transformers", spec)
    assert isinstance(spread._backend, SerialBackend)
    assert any("one after the other: its layers lie on several devices" in line for line in said)
    assert answer(spread) == answer(whole)


def test_a_worker_tells_its_engine_what_the_entry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineSpec] = []
    monkeypatch.setattr(runtime, "build", lambda name, spec: asked.append(spec))
    fields: dict[str, Any] = {"dtype": "bfloat16", "device": "cuda", "max_num_seqs": 3, "max_model_len": 99}
    entry = ModelEntry(name="m", path="a/b", quantization="nf4", **fields)
    settings = load_settings(redis_url="redis://127.0.0.1:1/0")
    worker = runtime.WorkerRuntime(settings, entry, "w", [4, 5])
    worker._build_engine()
    (spec,) = asked
    assert {name: getattr(spec, name) for name in fields} == fields
    assert (spec.path, spec.quantization, spec.gpus) == ("a/b", "nf4", 2)
    spec.say("weights: 40%, 4 of 10 tensors")
    assert worker.card().progress == "weights: 40%, 4 of 10 tensors"
    worker._state = "ready"
    assert worker.card().progress == ""
