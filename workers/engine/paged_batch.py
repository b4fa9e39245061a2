"""What our attention functions get with every forward: whose tokens these are, and where their keys and values lie.

Keys and values lie in pages of a fixed number of tokens; a table names the pages of every sequence. Each sequence
attends to its own pages only, so there is no mask over the whole batch, and no work for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.engine.dense import DenseCopies

Integers = NDArray[np.int64]

#: What transformers passes to every attention function; it changes nothing, or the sampler and the cache see to it.
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal", "cache_position", "layer_idx", "output_router_logits"}


class Unsupported(ValueError):
    """The model asks something of its attention that ours does not know."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's part of the cache, pages of `size` tokens each.

    How a page is laid out inside is the attention's own affair: `by_token` [size, heads, width] or `by_head`
    [heads, size, width]. It is the only one that reads or writes there; the library copies whole pages at most.
    """

    number: int
    key_pages: Tensor  # [pages, size, heads, width]
    value_pages: Tensor

    @property
    def heads(self) -> int:
        return self.key_pages.shape[2]

    def by_token(self) -> tuple[Tensor, Tensor]:
        """Keys and values, a row per token: [pages * size, heads, width]."""
        return self.key_pages.flatten(0, 1), self.value_pages.flatten(0, 1)

    def by_head(self) -> tuple[Tensor, Tensor]:
        """Keys and values, a row per token of a head: [pages * heads * size, width]."""
        width = self.key_pages.shape[3]
        return self.key_pages.view(-1, width), self.value_pages.view(-1, width)


@dataclass(slots=True)
class KvCache:
    """The layers' keys and values, and room for copies of some of them. `dense` are copies that last, on a CPU."""

    layers: dict[int, Layer]
    page_size: int
    device: torch.device
    dense: DenseCopies | None = None
    windows: set[int | None] = field(default_factory=set)
    _room: dict[str, Tensor] = field(default_factory=dict)

    def room(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor [rows, width], the same memory at every call: fresh memory costs page faults, which
        take longer than the copy that it is for.
        """
        kept = self._room.get(name)
        if kept is None or kept.numel() < rows * width or kept.dtype != dtype:
            self._room.pop(name, None)
            kept = self._room[name] = torch.empty(rows * width, dtype=dtype, device=self.device)
        return kept[: rows * width].view(rows, width)

    def forget(self, rid: str) -> None:
        """A sequence is gone, and its name may come again."""
        if self.dense is not None:
            self.dense.forget(rid)

    def clear(self) -> None:
        """Give up all copies, and their memory."""
        self._room.clear()
        if self.dense is not None:
            self.dense.clear()


@dataclass(slots=True)
class PagedBatch:
    """The sequences of one forward.

    The model gets it as the keyword `paged` and hands it down to every layer. All arrays are on the host.
    """

    cache: KvCache
    rids: Sequence[str]
    starts: Integers  # [sequences + 1] where the tokens of each begin, and the end of the last one's
    lengths: Integers  # [sequences] keys of each, those of this forward included
    table: Integers  # [sequences, pages] the pages of each in order; unused places are 0, a page that is never written
    places: Integers  # [tokens] where the keys and values of each token go: page * page size + place in it
    _made: dict[Any, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.cache.device

    def layer(self, module: Any) -> Layer:
        """The part of the cache that belongs to a layer's attention module."""
        return self.cache.layers[int(module.layer_idx)]

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made by the first layer that asks, and the same for the others."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def to_device(self, name: str, dtype: torch.dtype) -> Tensor:
        """One of the arrays on the device."""
        array: Integers = getattr(self, name)
        tensor: Tensor = self.once((name, dtype), lambda: torch.from_numpy(array).to(self.device, dtype))
        return tensor

    def copies(self, layer: Layer, pages: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """The keys and values in these pages of heads, copied together: [sequences, heads, keys, width] each. They last
        until the next call.
        """
        width = layer.key_pages.shape[3]
        found = []
        for name, rows in zip(("keys", "values"), layer.by_head(), strict=True):
            whole = rows.view(-1, self.cache.page_size * width)
            copy = self.cache.room(name, len(pages), whole.shape[1], whole.dtype)
            torch.index_select(whole, 0, pages, out=copy)
            found.append(copy.view(sequences, layer.heads, -1, width))
        return found[0], found[1]

    def accept(self, window: int | None, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
        """Raises `Unsupported` where more is asked than causal attention, full or within a sliding window."""
        self.once(("asked", window), lambda: _refuse_more_than_causal(key, value, kwargs))
        self.cache.windows.add(window)


def head_pages(pages: Integers, heads: int) -> Tensor:
    """Pages [sequences, pages] as pages of single heads, flat in the order sequence, head, page."""
    return torch.from_numpy((pages[:, None] * heads + np.arange(heads)[:, None]).reshape(-1))


def _refuse_more_than_causal(key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> None:
    asked = {name for name, given in kwargs.items() if not (given is None or given is False)}
    unknown = sorted(asked - _HARMLESS)
    if unknown:
        raise Unsupported(f"its attention uses {', '.join(unknown)}")
    if key.shape != value.shape:
        raise Unsupported("its keys and values have different widths")
