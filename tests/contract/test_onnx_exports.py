"""What the engine "onnx" reads of an export, and which ones it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.onnx_exports import HAS_BUILDER, checkpoint, export
from workers.engine.onnx import load
from workers.engine.onnx_graph import Graph
from workers.engine.registry import EngineSpec, build

pytestmark = pytest.mark.skipif(not HAS_BUILDER, reason="onnxruntime-genai is not installed")


def tiny_export() -> Path:
    return export(checkpoint("llama"))


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    shutil.copytree(source, folder)
    config = json.loads((folder / "genai_config.json").read_text())
    change(config["model"])
    (folder / "genai_config.json").write_text(json.dumps(config))
    return str(folder)


def test_every_end_token_of_the_export_ends_an_answer(tmp_path: Path) -> None:
    folder = Path(changed(tiny_export(), tmp_path / "ends", lambda model: model.update(eos_token_id=[3, 4])))
    assert load(EngineSpec(str(folder))).eos >= {3, 4}


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
    for number, (word, change) in enumerate(changes.items()):
        path = changed(tiny_export(), tmp_path / str(number), change)
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
