"""Engines by name, and what is said where one cannot be built."""

from __future__ import annotations

import sys

import pytest

from workers.engine.registry import EngineSpec, build


@pytest.mark.parametrize(
    ("engine", "gpus", "remedy"),
    [("vllm", 2, "one GPU, gpus .* set more replicas"), ("onnx", 1, "CPU: leave gpus out")],
)
def test_gpus_that_an_engine_does_not_use_are_refused(engine: str, gpus: int, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"the engine {engine} .*{remedy}"):
        build(engine, EngineSpec("x", gpus=gpus))


def test_an_unknown_engine_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'vlm'.*fake, onnx, transformers, vllm"):
        build("vlm", EngineSpec("somewhere"))


def test_without_vllm_its_engine_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "0")  # so that they are taken back
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    with pytest.raises(ValueError, match="environment of its own"):
        build("vllm", EngineSpec("somewhere"))
