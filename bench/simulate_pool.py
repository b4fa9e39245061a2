"""A pool in simulated time: arrivals, tickets, lanes and engines, around the real line.

What is simulated is what stands around the scripts: clients, the API's time for a request, the way of a ticket to a free
lane, the engines, the way of a token back. What happens in one window of simulated time goes to Redis together and its
answers count from the window's end at the earliest; no delay of the model should be shorter than the window.

Workers that have a free lane stand in a queue of their own, as blocked Redis clients do: each ticket goes to the one that
has waited longest, which needs `ticket_gap` before it can take the next.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from simulate_engine import Engine, Sequence, StepCost
from simulate_line import Line
from simulate_load import Arrival

from tasks.jobs import JobSpec
from tasks.ledger import Claim
from tasks.sampling import Sampling

Routing = Literal["random", "least"]


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
    sequence: Sequence | None = None
    claim: Claim | None = None
    worker: int = -1
    verdicts: list[str] = field(default_factory=list)


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


class Pool:
    """Cells of workers; each cell is one line. `run` plays all arrivals to their end."""

    def __init__(
        self,
        line: Line,
        cost: StepCost,
        delays: Delays,
        *,
        workers: int = 1,
        cells: int = 1,
        routing: Routing = "random",
        window: float = 0.001,
        seed: int = 0,
        limit: int = 10**9,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._line, self._cost, self._delays, self._window = line, cost, delays, window
        self._routing, self._limit, self._tell = routing, limit, tell
        self._rng = random.Random(seed)
        self.workers = [Worker(number, number % cells, cost) for number in range(workers)]
        self._idle: list[deque[Worker]] = [deque() for _ in range(cells)]
        for worker in self.workers:
            self._idle[worker.cell].append(worker)
        self._tickets = [0] * cells
        self._waiting = [0] * cells
        self._api_free = [0.0] * cells
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = 0
        self._floor = 0.0  # nothing can be scheduled before
        self.now = 0.0
        self.jobs: list[Job] = []
        self.order: list[int] = []  # job numbers as they were claimed
        self._live: dict[str, Job] = {}

    def run(self, arrivals: Iterable[Arrival], until: float = math.inf) -> list[Job]:
        """All jobs, those refused included, after the last has ended or at `until`."""
        for arrival in arrivals:
            job = Job(len(self.jobs), arrival)
            self.jobs.append(job)
            self._at(arrival.at + self._delays.submit, self._arrive, job)
        windows, ended = 0, 0
        while (self._events or self._line.pending) and self.now < until:
            self._play_window()
            windows += 1
            if self._tell is not None and windows % 1000 == 0:
                ended = len(self.jobs) - len(self._live)
                self._tell(f"{self.now:.1f} s simulated, {ended} of {len(self.jobs)} jobs not in the pool")
        return self.jobs

    def tickets(self, cell: int) -> int:
        """Tickets on the cell's queue, as the model has it."""
        return self._tickets[cell]

    def _play_window(self) -> None:
        first = self._events[0][0] if self._events else self.now
        end = max((math.floor(first / self._window) + 1) * self._window, math.nextafter(first, math.inf))
        while self._events and self._events[0][0] < end:
            self.now, _, act, subject = heapq.heappop(self._events)
            act(subject)
        self.now = self._floor = end
        if self._line.pending:
            self._line.flush(end)

    def _at(self, time: float, act: Callable[[Any], None], subject: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(time, self._floor), self._count, act, subject))

    # --- the API ---

    def _arrive(self, job: Job) -> None:
        job.cell = self._route()
        start = max(self.now, self._api_free[job.cell])
        self._api_free[job.cell] = start + self._delays.submit_gap
        self._waiting[job.cell] += 1
        if start > self.now:
            self._at(start, self._submit, job)
        else:
            self._submit(job)

    def _route(self) -> int:
        if len(self._tickets) == 1:
            return 0
        if self._routing == "random":
            return self._rng.randrange(len(self._tickets))
        return self._waiting.index(min(self._waiting))

    def _submit(self, job: Job) -> None:
        arrival, submitted = job.arrival, self.now
        spec = Spec(
            f"job_{job.number}", "completion", f"cell-{job.cell}", ((arrival.prompt,),),
            Sampling(max_tokens=arrival.limit or arrival.answer, seed=0), tenant=arrival.tenant,
            priority=arrival.priority,
        )  # fmt: skip

        def accepted(position: int | None) -> None:
            if position is None:
                self._waiting[job.cell] -= 1
                return
            job.position, job.submitted = position, submitted
            self._live[spec.id] = job
            self._tickets[job.cell] += 1
            self._match(job.cell, submitted)

        self._line.submit(spec, self._limit, accepted)

    # --- tickets and lanes ---

    def _match(self, cell: int, time: float) -> None:
        idle = self._idle[cell]
        while self._tickets[cell] and idle:
            worker = idle.popleft()
            self._tickets[cell] -= 1
            worker.free -= 1
            self._at(time + self._delays.claim, self._claim, worker)
            self._at(time + self._delays.ticket_gap, self._ask, worker)

    def _ask(self, worker: Worker) -> None:
        """The worker takes the next ticket, if it has a lane for it."""
        worker.asks = worker.free > 0
        if worker.asks:
            self._idle[worker.cell].append(worker)
            self._match(worker.cell, self.now)

    def _claim(self, worker: Worker) -> None:
        def answered(claim: Claim | None) -> None:
            if claim is None:
                return self._free(worker)
            job = self._live[claim.spec.id]
            job.claim, job.claimed, job.worker = claim, self.now, worker.number
            self.order.append(job.number)
            self._waiting[worker.cell] -= 1
            job.sequence = Sequence(job.arrival.prompt, job.arrival.answer)
            worker.jobs[job.sequence] = job
            if worker.engine.add(job.sequence, self.now):
                self._await_engine(worker)

        self._line.claim(f"cell-{worker.cell}", f"worker-{worker.number}", answered)

    def _free(self, worker: Worker) -> None:
        worker.free += 1
        if not worker.asks:
            self._ask(worker)

    # --- engines ---

    def _await_engine(self, worker: Worker) -> None:
        worker.version += 1
        self._at(worker.engine.due, self._steps_over, (worker, worker.version))

    def _steps_over(self, of: tuple[Worker, int]) -> None:
        worker, version = of
        if version != worker.version:
            return  # somebody joined, and the steps were cut short
        _, ended = worker.engine.finish()
        if not math.isinf(worker.engine.due):
            self._await_engine(worker)
        if ended:
            self._end(worker, [worker.jobs.pop(sequence) for sequence in ended])

    def _end(self, worker: Worker, jobs: list[Job]) -> None:
        def answered(verdicts: list[str]) -> None:
            for job, verdict in zip(jobs, verdicts, strict=True):
                job.verdicts.append(verdict)
                del self._live[f"job_{job.number}"]
                self._line.forget(f"job_{job.number}")

        self._line.end([(job.claim, job.arrival.answer) for job in jobs if job.claim], answered)
        for _ in jobs:
            self._at(self.now + self._delays.free, self._free, worker)
