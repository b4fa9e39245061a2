"""An exported decoder: its graph in ONNX Runtime, and the keys and values of the batch that it runs over.

The keys and values of all rows lie in one rectangle per layer, rows by length. The graph reads and writes it in place:
its attention (GroupQueryAttention) learns from the mask how long each row is, and puts new keys behind the old ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FLOAT = "tensor(float)"


@dataclass(frozen=True, slots=True)
class Names:
    """What genai_config.json calls the graph's file, inputs and outputs; "%d" stands for a layer.

    A layer that keeps only a `window` of its keys wants rows that are at least as long.
    """

    file: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: int
    head_size: int
    window: int


class Graph:
    """A graph whose batch is the first rows of its rectangle. Raises ValueError for one that it cannot feed."""

    def __init__(self, folder: Path, names: Names, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        path = str(folder / names.file)
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = names
        self._shapes = _cache_shapes(self._session, names)
        (logits,) = [out for out in self._session.get_outputs() if out.name == names.outputs.get("logits")]
        if logits.type != _FLOAT:
            raise ValueError(f"its logits are {logits.type}, and this engine reads {_FLOAT}")
        self.vocab_size = int(logits.shape[-1])
        self._only_last = logits.shape[1] == 1
        self._caches: dict[tuple[str, str], Tensor] = {}
        self._bindings: dict[tuple[int, int], Any] = {}
        self.free()

    @property
    def least_length(self) -> int:
        """Tokens that every row of the rectangle must have room for. In longer ones no layer forgets any."""
        return self._names.window

    @property
    def bytes_per_token(self) -> int:
        """Of the rectangle."""
        return sum(4 * math.prod(shape) for shape in self._shapes.values())

    def free(self) -> None:
        """Give the rectangle back."""
        self._rows = self._length = 0
        self._caches = {}
        self._bindings = {}

    def close(self) -> None:
        """Free the weights, too."""
        self.free()
        self._session = None

    def resize(self, rows: int, length: int) -> None:
        """Make the rectangle this large. Keeps what fits of its content."""
        kept = min(rows, self._rows), min(length, self._length)
        for name, (heads, width) in self._shapes.items():
            new = torch.empty(rows, heads, length, width)
            if all(kept):
                new[: kept[0], :, : kept[1]] = self._caches[name][: kept[0], :, : kept[1]]
            self._caches[name] = new
        self._bindings = {}
        self._rows, self._length = rows, length

    @property
    def size(self) -> tuple[int, int]:
        """Rows and tokens per row of the rectangle."""
        return self._rows, self._length

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a row to another one."""
        for cache in self._caches.values():
            cache[target, :, :length] = cache[source, :, :length]

    def run(self, first: int, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """The last logits [rows, vocabulary] of the rows from `first` on, each given as many new tokens as the others.

        `lengths` are those of the rows with their new tokens. More than one new token are given to one row alone.
        """
        ids = torch.tensor(tokens)
        ends = torch.tensor(lengths).unsqueeze(1)
        inputs = {"input_ids": ids, "attention_mask": (torch.arange(max(lengths)) < ends).long()}
        logits = torch.empty(len(ids), 1 if self._only_last else ids.shape[1], self.vocab_size)
        binding = self._binding(first, len(ids))
        for field, tensor in inputs.items():
            _bind(binding.bind_input, self._names.inputs[field], tensor)
        _bind(binding.bind_output, self._names.outputs["logits"], logits)
        self._session.run_with_iobinding(binding)
        return logits[:, -1]

    def _binding(self, first: int, count: int) -> Any:
        """With the keys and values of these rows. Kept, for at one row it costs as much as half of a small forward."""
        if (first, count) not in self._bindings:
            binding = self._bindings[first, count] = self._session.io_binding()
            for (past, present), cache in self._caches.items():
                rows = cache[first : first + count]
                _bind(binding.bind_input, past, rows)
                _bind(binding.bind_output, present, rows)
        return self._bindings[first, count]


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    element = np.int64 if tensor.dtype == torch.int64 else np.float32
    bind(name, "cpu", 0, element, tuple(tensor.shape), tensor.data_ptr())


def _cache_shapes(session: Any, names: Names) -> dict[tuple[str, str], tuple[int, int]]:
    """Heads and their size, by the names of past and present keys and values. Raises ValueError for other inputs."""
    fields = names.inputs, names.outputs
    pairs = [
        (fields[0].get(f"past_{kind}_names", "") % layer, fields[1].get(f"present_{kind}_names", "") % layer)
        for layer in range(names.layers)
        for kind in ("key", "value")
    ]
    given = {each.name: each for each in session.get_inputs()}
    known = {names.inputs.get(field) for field in ("input_ids", "attention_mask")}
    pasts = {past for past, _ in pairs}
    for name, each in given.items():
        if name not in known | pasts:
            raise ValueError(f"its graph wants {name}, which this engine does not know")
        if name in pasts and each.type != _FLOAT:
            raise ValueError(f"its keys and values are {each.type}, and this engine keeps {_FLOAT}")
    if missing := (known | pasts) - given.keys():
        raise ValueError(f"its graph has no input {sorted(map(str, missing))[0]}")
    return {pair: (int(given[pair[0]].shape[1]), names.head_size) for pair in pairs}
