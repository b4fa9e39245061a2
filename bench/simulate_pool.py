"""A pool in simulated time: arrivals, tickets, lanes and engines, around the real line.

What is simulated is what stands around the scripts: clients, the API's time for a request, the way of a ticket to a free
lane, the engines, the way of a token back. What happens in one window of simulated time goes to Redis together and its
answers count from the window's end at the earliest; no delay of the model should be shorter than the window.

Workers that have a free lane stand in a queue of their own, as blocked Redis clients do: each ticket goes to the one that
has waited longest, which needs `ticket_gap` before it can take the next.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from bench.simulate_clock import Clock
from bench.simulate_engine import Sequence, StepCost
from bench.simulate_job import Delays, Job, Worker
from bench.simulate_line import Line
from bench.simulate_load import Arrival
from tasks.ledger import Claim

#: Where a load balancer sends a request: anywhere, to the shortest line, or where the fewest requests are.
Routing = Literal["random", "waiting", "present"]
#: step.lua's own term, and a little for the ticket to be taken.
YIELD_AFTER = 0.021


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
        self._line, self._delays, self._clock = line, delays, Clock(window)
        self._routing, self._limit, self._tell = routing, limit, tell
        self._rng = random.Random(seed)
        self.workers = [Worker(number, number % cells, cost) for number in range(workers)]
        self._idle: list[deque[Worker]] = [deque() for _ in range(cells)]
        for worker in self.workers:
            self._idle[worker.cell].append(worker)
        self._cells = [list(idle) for idle in self._idle]
        self._urgent = [0] * cells  # interactive jobs in line
        self._pressing = [False] * cells
        self._step_s = cost.run(1, cost.lanes, 0)
        self.yields = 0
        self._tickets = [0] * cells
        self._waiting, self._present = [0] * cells, [0] * cells
        self._api_free = [0.0] * cells
        self.jobs: list[Job] = []
        self.order: list[int] = []  # job numbers as they were claimed
        self._live: dict[str, Job] = {}

    def run(self, arrivals: Iterable[Arrival]) -> list[Job]:
        """Play arrivals, given in the order of their times, until all jobs have ended; those refused are among them."""
        coming = iter(arrivals)
        self._await_arrival(coming)
        windows = 0
        while self._clock or self._line.pending:
            self._clock.play_window()
            if self._line.pending:
                self._line.flush(self._clock.now)
            windows += 1
            if self._tell is not None and windows % 500 == 0:
                self._tell(
                    f"{self._clock.now:8.2f} s simulated, {len(self.jobs)} jobs came, {len(self._live)} are there"
                )
        return self.jobs

    def tickets(self, cell: int) -> int:
        """Tickets on the cell's queue, as the model has it."""
        return self._tickets[cell]

    # --- the API ---

    def _await_arrival(self, coming: Iterator[Arrival]) -> None:
        arrival = next(coming, None)
        if arrival is not None:
            self._clock.at(arrival.at + self._delays.submit, self._arrive, (arrival, coming))

    def _arrive(self, of: tuple[Arrival, Iterator[Arrival]]) -> None:
        arrival, coming = of
        self._await_arrival(coming)
        job = Job(len(self.jobs), arrival, self._route())
        self.jobs.append(job)
        now = self._clock.now
        start = max(now, self._api_free[job.cell])
        self._api_free[job.cell] = start + self._delays.submit_gap
        self._waiting[job.cell] += 1
        self._present[job.cell] += 1
        self._clock.at(start, self._submit, job)

    def _route(self) -> int:
        counts = self._waiting if self._routing == "waiting" else self._present
        least = max(counts) if self._routing == "random" else min(counts)
        return self._rng.choice([cell for cell, count in enumerate(counts) if count <= least])

    def _submit(self, job: Job) -> None:
        submitted = self._clock.now
        spec = job.spec()

        def accepted(position: int | None) -> None:
            if position is None:
                self._waiting[job.cell] -= 1
                self._present[job.cell] -= 1
                return
            job.position, job.submitted = position, submitted
            self._live[spec.id] = job
            self._tickets[job.cell] += 1
            self._match(job.cell, submitted)
            if job.arrival.priority == "interactive":
                self._urgent[job.cell] += 1
                if not self._pressing[job.cell]:
                    self._pressing[job.cell] = True
                    self._clock.at(submitted + YIELD_AFTER, self._press, job.cell)

        self._line.submit(spec, self._limit, accepted)

    # --- tickets and lanes ---

    def _match(self, cell: int, time: float) -> None:
        idle = self._idle[cell]
        while self._tickets[cell] and idle:
            worker = idle.popleft()
            self._tickets[cell] -= 1
            worker.free -= 1
            self._clock.at(time + self._delays.claim, self._claim, worker)
            self._clock.at(time + self._delays.ticket_gap, self._ask, worker)

    def _ask(self, worker: Worker) -> None:
        """The worker takes the next ticket, if it has a lane for it."""
        worker.asks = worker.free > 0
        if worker.asks:
            self._idle[worker.cell].append(worker)
            self._match(worker.cell, self._clock.now)

    def _claim(self, worker: Worker) -> None:
        def answered(claim: Claim | None) -> None:
            if claim is None:
                return self._free(worker)
            job = self._live[claim.spec.id]
            job.claim, job.claimed, job.entries = claim, self._clock.now, 0
            job.attempts += 1
            self.order.append(job.number)
            self._waiting[worker.cell] -= 1
            self._urgent[worker.cell] -= job.arrival.priority == "interactive"
            job.sequence = Sequence(job.arrival.prompt + job.logged, job.arrival.answer - job.logged)
            worker.jobs[job.sequence] = job
            if job.arrival.priority == "batch":
                worker.batch[job] = None
            if worker.engine.add(job.sequence, self._clock.now):
                self._await_engine(worker)

        self._line.claim(f"cell-{worker.cell}", f"worker-{worker.number}", answered)

    def _free(self, worker: Worker) -> None:
        worker.free += 1
        if not worker.asks:
            self._ask(worker)

    # --- engines ---

    def _await_engine(self, worker: Worker) -> None:
        worker.version += 1
        self._clock.at(worker.engine.due, self._steps_over, (worker, worker.version))

    def _steps_over(self, of: tuple[Worker, int]) -> None:
        worker, version = of
        if version != worker.version:
            return  # somebody joined or left, and the steps were cut short
        first, ended = worker.engine.finish()
        for sequence in first:
            job = worker.jobs.get(sequence)
            if job is not None and math.isnan(job.first):
                job.first = sequence.first
        if not math.isinf(worker.engine.due):
            self._await_engine(worker)
        over = [worker.jobs.pop(sequence) for sequence in ended if sequence in worker.jobs]
        if over:
            self._end(worker, over)

    def _end(self, worker: Worker, jobs: list[Job]) -> None:
        def answered(verdicts: list[str]) -> None:
            for job, verdict in zip(jobs, verdicts, strict=True):
                if verdict == "ok":  # else it had to yield in the same moment, and runs again
                    job.verdicts.append(verdict)
                    job.ended = ended
                    self._present[job.cell] -= 1
                    del self._live[job.id]
                    self._line.forget(job.id)

        ended = self._clock.now
        for job in jobs:
            worker.batch.pop(job, None)
        self._line.step([job.row(job.arrival.answer, True) for job in jobs], int(worker.free == 0), answered)
        for _ in jobs:
            self._clock.at(ended + self._delays.free, self._free, worker)

    # --- batch jobs yield ---

    def _press(self, cell: int) -> None:
        """Interactive jobs have no lane: a worker that is full tells of its batch jobs, as it does after every step."""
        if not self._urgent[cell]:
            self._pressing[cell] = False
            return
        workers = self._cells[cell]
        for worker in self._rng.sample(workers, min(4, len(workers))):
            if worker.free or not worker.batch:
                continue
            told = [(job, made) for job in worker.batch if (made := self._made(worker, job)) > job.logged]
            if told:
                self._tell_of(worker, told)
                break
        self._clock.at(self._clock.now + max(self._clock.window, self._step_s / len(workers)), self._press, cell)

    def _made(self, worker: Worker, job: Job) -> int:
        assert job.sequence is not None
        return job.arrival.answer - job.sequence.answer + worker.engine.made(job.sequence, self._clock.now)

    def _tell_of(self, worker: Worker, told: list[tuple[Job, int]]) -> None:
        def answered(verdicts: list[str]) -> None:
            for (job, _), verdict in zip(told, verdicts, strict=True):
                if verdict == "yield":
                    self._yield(worker, job)

        self._line.step([job.row(made, False) for job, made in told], 1, answered)

    def _yield(self, worker: Worker, job: Job) -> None:
        self.yields += 1
        self._waiting[worker.cell] += 1
        self._tickets[worker.cell] += 1
        if job.sequence in worker.jobs:
            del worker.jobs[job.sequence], worker.batch[job]
            if worker.engine.remove(job.sequence, self._clock.now):
                self._await_engine(worker)
            self._clock.at(self._clock.now + self._delays.free, self._free, worker)
