"""Which engines there are, by the name that `models.toml` uses. Engines are imported only when they are
built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from workers.engine.base import Engine


@dataclass(frozen=True)
class EngineSpec:
    """What to load and how. `path` is a local folder or a hub id; `progress` is told, in plain lines, what
    goes on. `gpus` is how many of them the worker has; 0: nobody said.
    """

    path: str
    dtype: str = "auto"
    device: str = "auto"
    max_num_seqs: int = 32
    max_model_len: int | None = None
    progress: Callable[[str], None] | None = None
    quantization: str = "none"
    gpus: int = 0

    def say(self, line: str) -> None:
        """Report progress, when somebody listens."""
        if self.progress is not None:
            self.progress(line)


# Name -> module; the module has a function `build(spec) -> Engine`.
ENGINES = {
    "fake": "workers.engine.fake",
    "onnx": "workers.engine.onnx",
    "transformers": "workers.engine.continuous",
    "vllm": "workers.engine.vllm",
}
#: How weights can be stored -> the package that does it.
QUANTIZED_BY = {"int8": "torchao", "nf4": "bitsandbytes"}


def build(name: str, spec: EngineSpec) -> Engine:
    """Load a model with the engine called `name`."""
    if name not in ENGINES:
        raise ValueError(f"no engine is called {name!r}; there are: {', '.join(sorted(ENGINES))}")
    if spec.max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, not {spec.max_num_seqs}")
    if spec.quantization != "none" and name != "transformers":
        raise ValueError(f"quantization is for the engine transformers, not for {name}: leave it out")
    if spec.gpus and name == "onnx":
        raise ValueError("the engine onnx runs on the CPU: leave gpus out")
    if spec.gpus > 1 and name == "vllm":
        raise ValueError(f"the engine vllm uses one GPU, gpus gives each replica {spec.gpus}: set more replicas")
    return cast(Engine, import_module(ENGINES[name]).build(spec))
