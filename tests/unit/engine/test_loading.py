"""Models from a folder: what the profile says, which ids end an answer, and how large the cache becomes."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from tests.tiny_models import CHAT_TEMPLATE, CONTEXT, END, fast_tokenizer, tiny_model
from workers.engine import attention, progress
from workers.engine.budget import Budget, plan_budget
from workers.engine.continuous import assemble
from workers.engine.loading import describe, load, set_threads
from workers.engine.registry import EngineSpec, build
from workers.engine.serial import SerialBackend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    fast_tokenizer().save_pretrained(path)
    return path


def test_a_folder_becomes_an_engine_with_its_profile(folder: Path) -> None:
    lines: list[str] = []
    engine = build("transformers", EngineSpec(str(folder), device="cpu", max_num_seqs=4, progress=lines.append))
    profile = engine.profile
    assert Tokenizer.from_str(profile.tokenizer).encode(f"a{END}").ids[-1] == profile.vocab_size - 1
    assert profile.chat_template == CHAT_TEMPLATE
    assert profile.special_tokens["eos_token"] == END
    assert (profile.max_model_len, engine.max_num_seqs) == (CONTEXT, 4)
    assert lines[-1] == "ready"
    assert any("parameters" in line for line in lines)
    engine.close()


def test_a_shorter_context_and_another_dtype_can_be_asked_for(folder: Path) -> None:
    spec = EngineSpec(str(folder), dtype="bfloat16", device="cpu", max_model_len=100)
    loaded = load(spec)
    assert loaded.profile.max_model_len == 100
    assert loaded.model.dtype == torch.bfloat16
    assert load(dataclasses.replace(spec, max_model_len=10**6)).profile.max_model_len == CONTEXT
    with pytest.raises(ValueError, match="dtype"):
        load(dataclasses.replace(spec, dtype="floaty"))


def test_loading_says_how_far_it_is_and_how_long_it_took(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    spec = EngineSpec(str(folder), device="cpu", progress=said.append)
    load(spec)
    assert not [line for line in said if line.startswith("weights:")]  # it takes no two seconds
    model: Any = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    fast_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    said.clear()
    load(dataclasses.replace(spec, path=str(tmp_path)))
    total = len(model.state_dict())
    told = [line for line in said if line.startswith("weights:")]
    assert told == [f"weights: {done / total:.0%}, {done} of {total} tensors" for done in range(total)]
    assert re.fullmatch(r"loaded 0\.1M parameters, 0\.4 MiB, as torch\.float32 in \d+\.\d s", said[-1])


def test_every_configured_end_token_ends_an_answer() -> None:
    model, source = tiny_model("qwen3"), fast_tokenizer()
    end = source.eos_token_id
    configured = model.generation_config.eos_token_id
    try:
        for value, expected in (([3, 4], {3, 4, end}), (5, {5, end}), (None, {end})):
            model.generation_config.eos_token_id = value
            assert describe(model, source).eos == expected
    finally:
        model.generation_config.eos_token_id = configured


def test_what_the_authors_recommend_for_sampling_is_in_the_profile() -> None:
    model, source = tiny_model("llama"), fast_tokenizer()
    before = model.generation_config
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    try:
        for config, expected in (
            ({}, {}),
            ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
            ({"do_sample": True, **recommended}, recommended),
        ):
            model.generation_config = GenerationConfig(**config)
            assert describe(model, source).profile.sampling == expected
    finally:
        model.generation_config = before


def test_a_model_without_a_chat_template_says_so() -> None:
    source = fast_tokenizer()
    source.chat_template = None
    assert describe(tiny_model("llama"), source).profile.chat_template is None


def test_the_cache_holds_the_longest_sequence_and_a_share_of_all() -> None:
    model: Any = tiny_model("llama")
    assert plan_budget(EngineSpec("x", max_num_seqs=1), model, CONTEXT).kv_tokens > CONTEXT
    assert plan_budget(EngineSpec("x", max_num_seqs=8), model, CONTEXT).kv_tokens == 8 * CONTEXT


def test_a_context_that_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama")
    monkeypatch.setattr("workers.engine.budget.CPU_KV_SHARE", 1e-9)
    with pytest.raises(ValueError, match="smaller max_model_len"):
        plan_budget(EngineSpec("x", max_model_len=100), model, 100)
    with pytest.raises(ValueError, match="free memory"):
        plan_budget(EngineSpec("x"), model, CONTEXT)


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    set_threads()
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("PENSTOCK_THREADS", "0")  # the setting's own default, written out
    set_threads()
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("PENSTOCK_THREADS", "1")
    set_threads()
    assert torch.get_num_threads() == 1


def test_the_kernel_is_for_half_precision_on_cuda() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert attention.register(cpu, torch.bfloat16) == attention.GATHER
    assert attention.register(cuda, torch.float32) == attention.GATHER
    assert attention.register(cuda, torch.bfloat16) == attention.VARLEN


@pytest.mark.parametrize(("family", "word"), [("gemma2", "softcap"), ("bloom", "standard deviation")])
def test_a_model_that_cannot_be_batched_says_why(family: str, word: str) -> None:
    lines: list[str] = []
    model = copy.deepcopy(tiny_model(family))
    own = model.config._attn_implementation
    assemble(describe(model, fast_tokenizer()), Budget(4, 1024, 128), lines.append)
    assert any("one after the other" in line and word in line for line in lines), lines
    assert model.config._attn_implementation == own


def test_a_model_whose_logits_come_out_otherwise_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that forgets the scaling is one of the things that a list of names would not notice."""
    ours = attention.gather_attention
    monkeypatch.setattr(
        attention, "gather_attention", lambda *given, scaling=None, **more: ours(*given, scaling=scaling * 0.8, **more)
    )
    lines: list[str] = []
    engine = assemble(
        describe(copy.deepcopy(tiny_model("llama")), fast_tokenizer()), Budget(4, 1024, 128), lines.append
    )
    assert isinstance(engine._backend, SerialBackend)
    assert "standard deviation" in lines[0]
