"""A simulated engine: when each of its sequences gets its first token, and its last.

The schedule is the real engine's: those that decode come first, one token each; prompts are computed in the order of
their arrival with what the step's token budget leaves. A step takes

    fixed + sequence * n + prompt * p + context * k

seconds with n sequences that decode, p prompt tokens, and k keys that are read, in thousands. Between two changes of the
batch all steps are alike but for k, which grows by n a step, so a run of them is one event and not one each.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step by its parts; `budget` is the most tokens of one step, `lanes` the most sequences."""

    fixed: float
    sequence: float
    prompt: float
    context: float = 0.0
    budget: int = 512
    lanes: int = 64

    def run(self, steps: int, sequences: int, keys: float, prompt: int = 0) -> float:
        """Seconds of some steps in a row; `keys` are read by the first, and each sequence adds one at each step."""
        keys_read = steps * keys + sequences * steps * (steps - 1) / 2
        return steps * (self.fixed + self.sequence * sequences + self.prompt * prompt) + self.context * keys_read / 1000

    def steps_within(self, seconds: float, sequences: int, keys: float) -> int:
        """The number of the step that is under way after so many seconds; the first is 1."""
        grows = self.context * sequences / 2000
        first = self.fixed + self.sequence * sequences + self.context * keys / 1000 - grows
        if grows == 0.0:
            return max(1, math.ceil(seconds / first))
        return max(1, math.ceil((math.sqrt(first * first + 4 * grows * seconds) - first) / (2 * grows)))

    def plus(self, fixed: float, sequence: float) -> StepCost:
        """The same with more for each step and for each of its sequences."""
        return replace(self, fixed=self.fixed + fixed, sequence=self.sequence + sequence)

    def to_json(self) -> dict[str, float]:
        """As a dict; `StepCost(**data)` reads it back."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class Sequence:
    """What the engine has to do, and when it did it (seconds of simulated time). `answer` is at least 1."""

    prompt: int
    answer: int
    first: float = math.nan
    ended: float = math.nan
    left: int = 0  # prompt tokens to be computed yet
    last_step: int = 0
    gone: bool = False


class Batch:
    """Who is in the next step. Knows no time: it is the schedule alone."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.decoding = 0
        self.keys = 0  # of those that decode, as the next step reads them
        self.steps = 0
        self._prompts: deque[Sequence] = deque()
        self._ends: list[tuple[int, int, Sequence]] = []
        self._added = 0

    def add(self, sequence: Sequence) -> None:
        """Into the next step, if the budget allows."""
        sequence.left = sequence.prompt
        self._prompts.append(sequence)

    @property
    def busy(self) -> bool:
        """True while a step would do anything."""
        return bool(self._prompts or self.decoding)

    def plan(self) -> tuple[int, int]:
        """The next steps: how many are alike, and how many prompt tokens the first of them computes."""
        if self._prompts:
            waiting = sum(sequence.left for sequence in self._prompts)
            return 1, min(waiting, max(0, self.budget - self.decoding))
        while self._ends[0][2].gone:
            heapq.heappop(self._ends)
        return self._ends[0][0] - self.steps, 0

    def made(self, sequence: Sequence) -> int:
        """Its tokens so far."""
        return 0 if sequence.left else sequence.answer - max(0, sequence.last_step - self.steps)

    def remove(self, sequence: Sequence) -> None:
        """Forget one that is not complete."""
        if sequence.left:
            self._prompts.remove(sequence)
        else:
            self.decoding -= 1
            self.keys -= sequence.prompt + self.made(sequence)
        sequence.gone = True

    def advance(self, steps: int, prompt: int) -> tuple[list[Sequence], list[Sequence]]:
        """Do so many of what `plan` gave. Returns those that got their first token, and those that are complete."""
        self.steps += steps
        self.keys += steps * self.decoding
        ended = []
        while self._ends and self._ends[0][0] <= self.steps:
            sequence = heapq.heappop(self._ends)[2]
            if not sequence.gone:
                ended.append(sequence)
                self.decoding -= 1
                self.keys -= sequence.prompt + sequence.answer
        first = self._compute(prompt)
        return first, ended + [sequence for sequence in first if sequence.answer == 1]

    def _compute(self, tokens: int) -> list[Sequence]:
        """Prompt tokens, oldest first; who is through has a token."""
        through = []
        while tokens and self._prompts:
            sequence = self._prompts[0]
            part = min(tokens, sequence.left)
            sequence.left -= part
            tokens -= part
            if sequence.left == 0:
                through.append(self._prompts.popleft())
                if sequence.answer > 1:
                    self._join(sequence)
        return through

    def _join(self, sequence: Sequence) -> None:
        sequence.last_step = self.steps + sequence.answer - 1
        self._added += 1
        heapq.heappush(self._ends, (sequence.last_step, self._added, sequence))
        self.decoding += 1
        self.keys += sequence.prompt + 1


class Engine:
    """One engine in simulated time. The caller asks for `due`, and calls `finish` then, not earlier."""

    def __init__(self, cost: StepCost) -> None:
        self.cost = cost
        self.due = math.inf  # when the steps that run are over
        self.busy_s = 0.0
        self.steps = 0
        self.tokens = 0
        self._batch = Batch(cost.budget)
        self._inbox: list[Sequence] = []
        self._leaving: list[Sequence] = []
        self._began = 0.0
        self._plan = (0, 0)
        self._keys = 0

    def add(self, sequence: Sequence, now: float) -> bool:
        """It joins at the end of the step that is under way. True: `due` has changed."""
        sequence.left = sequence.prompt
        self._inbox.append(sequence)
        if math.isinf(self.due):
            self._start(now)
            return True
        return self._cut(now)

    def remove(self, sequence: Sequence, now: float) -> bool:
        """One that is not complete leaves at the end of the step that is under way. True: `due` has changed."""
        if sequence in self._inbox:
            self._inbox.remove(sequence)
            return False
        self._leaving.append(sequence)
        return self._cut(now)

    def made(self, sequence: Sequence, now: float) -> int:
        """Its tokens so far, those of whole steps."""
        steps, prompt = self._plan
        if sequence.left or prompt or steps == 1:
            return self._batch.made(sequence)
        under_way = self.cost.steps_within(now - self._began, self._batch.decoding, self._keys)
        return min(sequence.answer - 1, self._batch.made(sequence) + min(under_way, steps) - 1)

    def _cut(self, now: float) -> bool:
        """Let the run of steps end with the one that is under way."""
        steps, prompt = self._plan
        if prompt or steps == 1:
            return False
        under_way = self.cost.steps_within(now - self._began, self._batch.decoding, self._keys)
        if under_way >= steps:
            return False
        self._plan = (under_way, 0)
        self.due = self._began + self.cost.run(under_way, self._batch.decoding, self._keys)
        return True

    def finish(self) -> tuple[list[Sequence], list[Sequence]]:
        """The steps are over: who got a first token, and who is complete. The next ones begin at once."""
        now, (steps, prompt) = self.due, self._plan
        self.busy_s += now - self._began
        self.steps += steps
        self.tokens += steps * self._batch.decoding
        first, ended = self._batch.advance(steps, prompt)
        self._leaving = [sequence for sequence in self._leaving if sequence not in ended]
        self.tokens += len(first)
        for sequence in first:
            sequence.first = now
        for sequence in ended:
            sequence.ended = now
        self._start(now)
        return first, ended

    def _start(self, now: float) -> None:
        for sequence in self._leaving:
            self._batch.remove(sequence)
        self._leaving.clear()
        for sequence in self._inbox:
            self._batch.add(sequence)
        self._inbox.clear()
        if not self._batch.busy:
            self.due = math.inf
            return
        self._began, self._plan, self._keys = now, self._batch.plan(), self._batch.keys
        steps, prompt = self._plan
        self.due = now + self.cost.run(steps, self._batch.decoding, self._keys, prompt)
