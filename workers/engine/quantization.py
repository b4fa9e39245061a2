"""Weights in fewer bits: quantised while they are loaded, or by whoever made the checkpoint.

Only weights are stored so. Activations, and with them the KV cache, keep the model's dtype: a scale that is taken from
the activations of a whole batch would make an answer depend on its neighbours.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from workers.engine.registry import QUANTIZED_BY


def method_of(config: Any) -> str | None:
    """How the checkpoint says that it is quantised, such as "gptq"; None if it is not."""
    for part in (config, config.get_text_config()):
        own = getattr(part, "quantization_config", None)
        if own is not None:
            found = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
            return str(getattr(found, "value", found) or "an unknown method")
    return None


def choose(asked: str, config: Any, dtype: torch.dtype) -> Any:
    """What transformers is to do to the weights while it loads them; None: nothing. `dtype` is what they compute in."""
    own = method_of(config)
    if asked == "none":
        if own is not None and own in QUANTIZED_BY.values():
            _require(own, "the checkpoint")
        return None
    if asked not in QUANTIZED_BY:
        raise ValueError(f"quantization must be none, {' or '.join(QUANTIZED_BY)}, not {asked!r}")
    if own is not None:
        raise ValueError(f"the checkpoint is quantised already, by {own}: leave quantization = {asked!r} out")
    _require(QUANTIZED_BY[asked], f"quantization = {asked!r}")
    transformers: Any = import_module("transformers")
    if asked == "int8":
        return transformers.TorchAoConfig(import_module("torchao.quantization").Int8WeightOnlyConfig())
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_storage=torch.uint8
    )


def _require(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"{what} needs the package {package}: pip install 'penstock[quant]'")


def check_applied(asked: str, model: Any) -> None:
    """Only linear layers can be stored so, and a model may have none of them."""
    if asked != "none" and not any(type(each) is not torch.nn.Parameter for each in model.parameters()):
        raise ValueError(
            f"quantization = {asked!r} finds no layer in {type(model).__name__} that it knows: leave it out"
        )


def describe(model: Any) -> str:
    """How large it is. Where others pack the weights, only they know how many parameters these are."""
    size = f"{weight_bytes(model) / 2**20:.1f} MiB"
    own = method_of(model.config)
    if own is not None and own not in QUANTIZED_BY.values():
        return f"{size} of weights, quantised by {own},"
    return f"{model.num_parameters() / 1e6:.1f}M parameters, {size},"


def weight_bytes(model: Any) -> int:
    """What the weights take in memory, scales included. A tensor that several layers share counts once."""
    tensors = {id(each): each for each in [*model.parameters(), *model.buffers()]}
    return sum(map(_stored_bytes, tensors.values()))


def _stored_bytes(tensor: Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:  # torchao: a tensor made of tensors
        return sum(_stored_bytes(getattr(tensor, name)) for name in flatten()[0])
    state = getattr(tensor, "quant_state", None)  # bitsandbytes keeps the scales beside the weights
    return tensor.nbytes + (0 if state is None else _stored_bytes(state.absmax))
