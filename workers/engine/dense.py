"""Copies of the keys and values of sequences that decode, side by side, so that a step need not gather their pages again.

On a CPU gathering pages takes as long as the attention that it is for. So a sequence's pages are copied once, when it begins
to decode or outgrows its place, and after that each step adds one token to the copy. The pages stay the truth: a copy that
is missing, or one step behind, is made from them again, and where there is no room for copies attention gathers as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST_PLACES = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """What all layers share."""

    layers: tuple[int, ...]
    heads: int
    width: int
    dtype: torch.dtype

    def bytes_of(self, places: int, length: int) -> int:
        """Of keys and values of all layers."""
        return 2 * len(self.layers) * places * self.heads * length * self.width * self.dtype.itemsize


@dataclass(slots=True)
class Group:
    """Places of `length` tokens, taken from the first on. `fresh` are those whose pages are yet to be copied."""

    length: int
    places: list[str] = field(default_factory=list)
    fresh: set[int] = field(default_factory=set)
    capacity: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)  # by layer: [capacity, heads, length, width]
    values: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, stay: set[str]) -> None:
        """Let all others go; who stands furthest back takes an empty place."""
        left = sum(rid in stay for rid in self.places)
        empty = [at for at, rid in enumerate(self.places[:left]) if rid not in stay]
        movers = [rid for rid in self.places[left:] if rid in stay]
        for at, rid in zip(empty, movers, strict=True):
            self.places[at] = rid
        self.fresh = set(empty)
        del self.places[left:]

    def join(self, rid: str) -> None:
        """Take the next place."""
        self.fresh.add(len(self.places))
        self.places.append(rid)

    def grow(self, capacity: int, shape: Shape) -> None:
        """New places for all. Zeros, since what is masked must be a number all the same."""
        self.capacity, self.fresh = capacity, set(range(len(self.places)))
        for made in (self.keys, self.values):
            made.clear()
            made.update(
                (layer, torch.zeros(capacity, shape.heads, self.length, shape.width, dtype=shape.dtype))
                for layer in shape.layers
            )


class DenseCopies:
    """Who has a copy, and where. `limit` is in bytes."""

    def __init__(self, shape: Shape, limit: int) -> None:
        self._shape, self._limit = shape, limit
        self._groups: dict[int, Group] = {}
        self._held: dict[str, int] = {}  # tokens in the copy of each sequence

    def arrange(self, rids: Sequence[str], lengths: Sequence[int]) -> list[Group]:
        """Place the sequences that decode in this step; `lengths` count the new token. Who is in no group has no copy."""
        now = dict(zip(rids, lengths, strict=True))
        right = {rid for rid, held in self._held.items() if now.get(rid) == held + 1}
        placed: set[str] = set()
        for group in self._groups.values():
            group.keep({rid for rid in group.places if rid in right and now[rid] <= group.length})
            placed.update(group.places)
        for rid, length in now.items():
            if rid not in placed:
                self._place(rid, length_of_place(length))
        groups = [group for group in self._groups.values() if group.places]
        self._held = {rid: now[rid] for group in groups for rid in group.places}
        return groups

    def clear(self) -> None:
        """Forget everything: copies may have been half written, or hold what is no number."""
        self._groups.clear()
        self._held.clear()

    def forget(self, rid: str) -> None:
        """It is gone, and its name may come again."""
        self._held.pop(rid, None)

    def _place(self, rid: str, length: int) -> None:
        group = self._groups.setdefault(length, Group(length))
        if len(group.places) == group.capacity:
            capacity = max(_FIRST_PLACES, 2 * group.capacity)
            if not self._has_room(group, capacity):
                return
            group.grow(capacity, self._shape)
        group.join(rid)

    def _has_room(self, wanting: Group, capacity: int) -> bool:
        """Whether the group may grow. Groups that nobody is in make room for it."""
        others = [group for group in self._groups.values() if group is not wanting and group.capacity]
        taken = sum(self._shape.bytes_of(group.capacity, group.length) for group in others)
        spare = self._limit - self._shape.bytes_of(capacity, wanting.length)
        for group in others:
            if taken > spare and not group.places:
                taken -= self._shape.bytes_of(group.capacity, group.length)
                del self._groups[group.length]
        return taken <= spare


def length_of_place(length: int) -> int:
    """At least a quarter more than needed is rare, a half never: 64, 96, 128, 192, 256, 384 and so on."""
    whole = 1 << max(6, (length - 1).bit_length())
    return whole * 3 // 4 if length <= whole * 3 // 4 and whole > 64 else whole
