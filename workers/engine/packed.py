"""Linear layers whose weights lie as oneDNN's matrix products want them: on a CPU, up to twice as fast for a batch.

These are the operations that torch's own compiler puts in the place of a linear layer. oneDNN compiles a kernel for every
number of rows, and each costs half a megabyte and half a millisecond, so rows are padded to one of few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

_WORTH_IT = 1 << 17  # numbers in a weight: each call costs 12 µs more, which smaller products do not earn back
_ROWS = 8  # for which weights are laid out; measured, one layout serves all numbers of rows


class PackedLinear(nn.Module):
    """In the place of an `nn.Linear` that is only run, with the same results up to rounding."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self._packed = _pack(plain.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        flat = rows.reshape(-1, self.in_features)
        count = len(flat)
        missing = padded(count) - count
        if missing:
            flat = pad(flat, (0, 0, 0, missing))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self._packed, self.bias, "none", [], "")
        return out[:count].view(*rows.shape[:-1], self.out_features)

    def unpacked(self) -> nn.Linear:
        """The layer as it was."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self._packed.to_dense(), requires_grad=False)
        plain.bias = self.bias
        return plain


def padded(rows: int) -> int:
    """The number of rows that a product is computed for: from 64 on, an eighth more at most."""
    step = 1 if rows <= 4 else 4 if rows <= 32 else 8 if rows <= 128 else 16 if rows <= 256 else 32
    return -(-rows // step) * step


def pack(model: nn.Module) -> int:
    """Put packed layers in the place of the model's linear ones, where the machine has them; how many."""
    if not _is_of_use(model):
        return 0
    # An output layer that is also the embedding would lie in memory twice.
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    return _replace(model, lambda layer: _is_plain(layer) and id(layer.weight) not in looked_up, PackedLinear)


def unpack(model: nn.Module) -> None:
    """Undo `pack`."""
    _replace(model, lambda layer: isinstance(layer, PackedLinear), PackedLinear.unpacked)


def _is_plain(layer: nn.Module) -> bool:
    """A layer that is large enough, and of which nobody made something else, such as a quantised one."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.numel() >= _WORTH_IT


def _replace(model: nn.Module, fits: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]) -> int:
    """One after the other: a layer's old weights are free before the next one's new ones are made."""
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children() if fits(child)]
    for parent, name in found:
        setattr(parent, name, make(getattr(parent, name)))
    return len(found)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def _is_of_use(model: nn.Module) -> bool:
    """Only for what was measured to be faster, and where a product comes out right."""
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    sample = torch.linspace(-1, 1, 32 * 32, dtype=weight.dtype).view(32, 32)
    try:
        found = torch.ops.mkldnn._linear_pointwise(sample, _pack(sample), None, "none", [], "")
    except (RuntimeError, AttributeError):  # this build of torch, or this processor, does without oneDNN
        return False
    return torch.allclose(found, linear(sample, sample), rtol=0.02, atol=1e-4)
