"""The batch of the engine "onnx": which sequences have a row of the graph's rectangle, and what each step runs.

Sequences that decode are the first rows, so that one forward runs all of them. At most one more is being read, in
parts, and it is the last row. When the rectangle cannot grow, the youngest goes back in line and is read again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from workers.engine.batching import Chooses, Made
from workers.engine.budget import Budget
from workers.engine.onnx_graph import Graph
from workers.engine.sequence import LiveSequence


@dataclass(slots=True)
class _Row:
    """A sequence in the rectangle. `read` of its tokens have keys and values; rows are numbered as they came."""

    sequence: LiveSequence
    number: int
    read: int = 0

    @property
    def length(self) -> int:
        return len(self.sequence.request.prompt) + len(self.sequence.tokens)

    @property
    def decodes(self) -> bool:
        return self.read == self.length - 1

    def tokens(self, size: int) -> list[int]:
        """The next ones to read."""
        prompt, end = self.sequence.request.prompt, self.read + size
        own = self.sequence.tokens[max(0, self.read - len(prompt)) : max(0, end - len(prompt))]
        return [*prompt[self.read : end], *own]


class OnnxBackend:
    """A `workers.engine.batching.Backend` on an exported graph."""

    def __init__(self, graph: Graph, sampler: Chooses, budget: Budget) -> None:
        self.sampler = sampler
        self.max_batch_tokens = max(budget.max_batch_tokens, budget.max_num_seqs)
        self._graph = graph
        self._budget = budget
        self._waiting: dict[str, LiveSequence] = {}
        self._rows: list[_Row] = []
        self._numbers = count()
        self._batch: list[str] = []

    @property
    def capacity(self) -> int:
        """The longest sequence, prompt and answer."""
        return self._budget.kv_tokens // self._budget.page_size * self._budget.page_size

    def add(self, sequence: LiveSequence) -> None:
        self._waiting[sequence.rid] = sequence

    def drop(self, rid: str) -> None:
        self._waiting.pop(rid, None)
        for at, row in enumerate(self._rows):
            if row.sequence.rid == rid:
                self._remove(at)
                return

    def forward(self) -> list[Made]:
        self._batch = []
        self._make_room()
        chosen = [row for row in self._rows if row.decodes]
        self._batch = [row.sequence.rid for row in chosen]  # whoever asks after a failure learns whose it was
        parts = [self._run(0, chosen, 1)] if chosen else []
        room = self.max_batch_tokens - len(chosen)
        while room > 0 and (row := self._next()) is not None:
            size = min(room, row.length - row.read)
            self._batch = [row.sequence.rid]
            logits = self._run(len(self._rows) - 1, [row], size)
            room -= size
            if row.read == row.length:
                parts.append(logits)
                chosen.append(row)
        return self._choose(parts, [row.sequence for row in chosen]) if chosen else []

    def batch(self) -> Sequence[str]:
        return self._batch

    def reset(self) -> None:
        self._waiting.clear()
        self._rows.clear()
        self._graph.free()

    def running(self) -> int:
        return len(self._rows)

    def kv_used(self) -> float:
        """Rows are as long as the longest one: what the others leave of theirs is used, too."""
        read = max((row.read for row in self._rows), default=0)
        return len(self._rows) * self._pages(read) / self._budget.kv_tokens

    def close(self) -> None:
        self.reset()
        self._graph.close()

    def _run(self, first: int, rows: Sequence[_Row], size: int) -> Tensor:
        logits = self._graph.run(first, [row.tokens(size) for row in rows], [row.read + size for row in rows])
        for row in rows:
            row.read += size
        return logits

    def _choose(self, parts: Sequence[Tensor], sequences: Sequence[LiveSequence]) -> list[Made]:
        self._batch = [sequence.rid for sequence in sequences]
        choices = self.sampler.choose(parts[0] if len(parts) == 1 else torch.cat(list(parts)), sequences)
        return [Made(sequence.rid, *choice) for sequence, choice in zip(sequences, choices, strict=True)]

    def _next(self) -> _Row | None:
        """The row that is being read, or a new one for the next sequence in line, if there is room."""
        if self._rows and self._rows[-1].read < self._rows[-1].length:
            return self._rows[-1]
        first = next(iter(self._waiting.values()), None)
        if first is None or len(self._rows) == self._budget.max_num_seqs:
            return None
        row = _Row(first, next(self._numbers))
        if self._need([*self._rows, row]) > self._budget.kv_tokens:
            return None
        del self._waiting[first.rid]
        self._rows.append(row)
        self._grow()
        return row

    def _make_room(self) -> None:
        """Let every row grow by a token: the youngest give way to the others."""
        while self._need(self._rows) > self._budget.kv_tokens:
            youngest = max(range(len(self._rows)), key=lambda at: self._rows[at].number)
            sequence = self._rows[youngest].sequence
            self._remove(youngest)
            self._waiting = {sequence.rid: sequence} | self._waiting
        self._grow()

    def _remove(self, at: int) -> None:
        """Close the gap: by the last row that decodes, and its gap by the one that is being read."""
        last = len(self._rows) - 1
        for place in (last,) if self._rows[last].decodes else (last - 1, last):
            if at < place:
                self._graph.move(place, at, self._rows[place].read)
                self._rows[at], at = self._rows[place], place
        del self._rows[at]

    def _length(self, rows: Sequence[_Row]) -> int:
        """Of the longest, in whole pages."""
        return self._pages(max((row.length for row in rows), default=0))

    def _pages(self, length: int) -> int:
        return -(-max(length, self._graph.least_length) // self._budget.page_size) * self._budget.page_size

    def _need(self, rows: Sequence[_Row]) -> int:
        """Tokens of a rectangle that holds these rows."""
        return len(rows) * self._length(rows)

    def _grow(self) -> None:
        """Make the rectangle large enough: twice as large where it is too small, but within the budget."""
        rows, length = len(self._rows), self._length(self._rows)
        has = self._graph.size
        if rows <= has[0] and length <= has[1]:
            return
        wanted = has[0], has[1]
        if rows > has[0]:
            wanted = max(rows, min(2 * has[0], self._budget.max_num_seqs)), has[1]
        if length > has[1]:
            wanted = wanted[0], max(length, min(2 * has[1], self.capacity))
        self._graph.resize(*(wanted if wanted[0] * wanted[1] <= self._budget.kv_tokens else (rows, length)))
