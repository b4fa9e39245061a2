"""Sequences with one prompt that came together: the first reads it, and the others wait to share its keys."""

from __future__ import annotations

from collections.abc import Sequence


class Readers:
    """By prompt that is not in the cache yet: who reads it, then who waits for that."""

    def __init__(self) -> None:
        self._readers: dict[tuple[int, ...], list[str]] = {}
        self._prompts: dict[str, tuple[int, ...]] = {}

    def join(self, rid: str, prompt: Sequence[int]) -> bool:
        """Whether this one is to read the prompt."""
        key = self._prompts[rid] = tuple(prompt)
        readers = self._readers.setdefault(key, [])
        readers.append(rid)
        return len(readers) == 1

    def has_read(self, rid: str) -> list[str]:
        """The prompt of this one is in the cache: those that waited for it, if any did."""
        key = self._prompts.get(rid)
        if key is None:
            return []
        readers = self._readers.pop(key)
        for each in readers:
            del self._prompts[each]
        return [each for each in readers if each != rid]

    def leave(self, rid: str) -> str | None:
        """This one is gone: who is to read its prompt in its place, if it was reading for others."""
        key = self._prompts.pop(rid, None)
        if key is None:
            return None
        readers = self._readers[key]
        was_first = readers[0] == rid
        readers.remove(rid)
        if not readers:
            del self._readers[key]
        return readers[0] if readers and was_first else None

    def clear(self) -> None:
        """Nobody reads or waits."""
        self._readers.clear()
        self._prompts.clear()
