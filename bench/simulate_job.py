"""What a simulated pool is made of: its delays, its jobs, its workers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bench.simulate_engine import Engine, Sequence, StepCost
from bench.simulate_line import Row
from bench.simulate_load import Arrival
from tasks.jobs import JobSpec
from tasks.ledger import Claim
from tasks.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds that a request spends outside of line and engine."""

    submit: float = 0.004  # from the client's first byte until it is in line
    submit_gap: float = 0.0  # between two requests at one API process
    claim: float = 0.005  # from being in line, with a lane free, until the engine has it
    ticket_gap: float = 0.002  # between two tickets at one worker
    free: float = 0.003  # from the last token until the lane asks for a ticket
    relay: float = 0.004  # from the end of a step until the client has its tokens


class Spec(JobSpec):
    """A job whose prompt has the length that stands in its place: nothing reads the tokens here."""

    __slots__ = ()

    @property
    def prompt_tokens(self) -> int:
        """As usage and quotas count them."""
        return self.prompts[0][0]


@dataclass(slots=True, eq=False)
class Job:
    """A request with what became of it; times are seconds of simulated time."""

    number: int
    arrival: Arrival
    cell: int = 0
    position: int | None = None  # in line at submit; None: refused
    submitted: float = math.nan
    claimed: float = math.nan
    first: float = math.nan  # the step of its first token was over
    ended: float = math.nan
    sequence: Sequence | None = None  # of the last attempt
    claim: Claim | None = None
    attempts: int = 0
    entries: int = 0  # of this attempt, logged
    logged: int = 0  # tokens of all attempts
    verdicts: list[str] = field(default_factory=list)  # the line's, when the job ended

    @property
    def id(self) -> str:
        """As the line knows it."""
        return f"job_{self.number}"

    def spec(self) -> JobSpec:
        """What is submitted."""
        asked = self.arrival
        return Spec(
            self.id, "completion", f"cell-{self.cell}", ((asked.prompt,),),
            Sampling(max_tokens=asked.limit or asked.answer, seed=0), tenant=asked.tenant, priority=asked.priority,
        )  # fmt: skip

    def row(self, tokens: int, last: bool) -> Row:
        """What is new since the last row of a running job, which now has so many tokens over all attempts."""
        assert self.claim is not None
        row = Row(self.claim, self.entries, tokens - self.logged, last)
        if not last:
            self.entries += 1
            self.logged = tokens
        return row


class Worker:
    """Lanes around an engine."""

    def __init__(self, number: int, cell: int, cost: StepCost) -> None:
        self.number = number
        self.cell = cell
        self.free = cost.lanes
        self.asks = True  # in the queue for tickets, or busy with one
        self.version = 0
        self.engine = Engine(cost)
        self.jobs: dict[Sequence, Job] = {}
        self.batch: dict[Job, None] = {}  # those of them that may have to yield
