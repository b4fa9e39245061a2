"""Weights in fewer bits: quantised at load or in the checkpoint, with the answers of the quantised model."""

from __future__ import annotations

import copy
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.test_parity import check, random_prompts
from tests.tiny_models import CONTEXT, fast_tokenizer, tiny_model
from workers.engine import quantization
from workers.engine.budget import plan_budget
from workers.engine.loading import load
from workers.engine.registry import QUANTIZED_BY, EngineSpec, build

SCHEMES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed"))
    for name, package in QUANTIZED_BY.items()
]
# bitsandbytes, while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


def save(family: str, path: Path) -> Path:
    tiny_model(family).save_pretrained(path)
    fast_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("model"))


def spec(path: Path, scheme: str = "none", **fields: Any) -> EngineSpec:
    return EngineSpec(str(path), device="cpu", quantization=scheme, **fields)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_is_batched_and_answers_as_generate_does(folder: Path, scheme: str) -> None:
    """Alone in `generate()`, among neighbours in the engine: no answer depends on the batch."""
    check(load(spec(folder, scheme)).model, fast_tokenizer(), random_prompts(60))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_shrink_and_the_cache_keeps_the_precision_of_the_activations(folder: Path, scheme: str) -> None:
    said: list[str] = []
    plain, small = load(spec(folder)).model, load(spec(folder, scheme, progress=said.append)).model
    linear = sum(each.weight.numel() for name, each in plain.named_modules() if name.endswith("_proj"))
    whole, stored = quantization.weight_bytes(plain), quantization.weight_bytes(small)
    bits = {"int8": 9, "nf4": 5}[scheme]  # with the scales of short rows
    assert whole - linear * (4 - bits / 8) >= stored
    assert f"{stored / 2**20:.1f} MiB" in said[-1]
    assert f"quantization {scheme}" in said[1]
    assert f"{plain.num_parameters() / 1e6:.1f}M" in said[-1]
    assert small.dtype == torch.float32
    planned: list[list[str]] = [[], []]
    for model, lines in zip((plain, small), planned, strict=True):
        plan_budget(spec(folder, max_num_seqs=2, progress=lines.append), model, CONTEXT)
    assert planned[0] == planned[1] != []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_checkpoint_is_loaded_as_it_says(folder: Path, scheme: str, tmp_path: Path) -> None:
    made = load(spec(folder, scheme)).model
    made.save_pretrained(tmp_path)
    fast_tokenizer().save_pretrained(tmp_path)
    model = load(spec(tmp_path)).model
    assert quantization.weight_bytes(model) == quantization.weight_bytes(made)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, made(ids).logits)
    engine = build("transformers", spec(tmp_path, max_num_seqs=2))
    engine.close()
    with pytest.raises(
        ValueError, match=r"quantised already, by (torchao|bitsandbytes): leave quantization = 'int8' out"
    ):
        load(spec(tmp_path, "int8"))


def checkpoint_of(method: str, folder: Path, path: Path) -> Path:
    """A checkpoint that says it is quantised by this."""
    save("llama", path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32, "zero_point": True}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("method", "package"), [("gptq", "optimum"), ("awq", "gptqmodel")])
def test_a_checkpoint_whose_kernels_are_missing_names_their_package(
    folder: Path, method: str, package: str, tmp_path: Path
) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=f"pip install {package}"):
        load(spec(checkpoint_of(method, folder, tmp_path)))


def test_a_missing_package_names_the_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"'nf4' needs the package bitsandbytes: pip install 'penstock\[quant\]'"):
        load(spec(folder, "nf4"))
    path = checkpoint_of("torchao", folder, tmp_path)
    with pytest.raises(ValueError, match=r"the checkpoint needs the package torchao: pip install 'penstock\[quant\]'"):
        load(spec(path))


def test_what_cannot_be_quantised_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="quantization must be none, int8 or nf4, not 'int3'"):
        load(spec(folder, "int3"))
    with pytest.raises(ValueError, match="quantization is for the engine transformers, not for fake"):
        build("fake", spec(folder, "int8"))


@pytest.mark.parametrize("scheme", SCHEMES[:1])
def test_a_model_without_linear_layers_is_refused(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds no layer in GPT2LMHeadModel"):
        load(spec(save("gpt2", tmp_path), scheme))


def test_parameters_are_counted_only_where_we_know_how_they_are_packed() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    assert re.fullmatch(r"0\.1M parameters, 0\.4 MiB,", quantization.describe(model))
    model.config.quantization_config = {"quant_method": "gptq"}
    assert quantization.describe(model) == "0.4 MiB of weights, quantised by gptq,"
