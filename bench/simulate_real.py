"""A real pool for the model to be held against: Redis, one API process and one worker with the random model.

`Real.play` sends it the arrivals that the model gets too, and tells of each request what the client saw and what stands in
its record. All times are seconds from the start of the load.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis
import uvloop

from bench import toy_model
from bench.load import LEAD_S, Generator
from bench.load_plan import chat, open_loop, words
from bench.pools import Pool, penstock, running
from bench.simulate_load import Arrival
from tasks.keys import key


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. `created`, `started` and `finished` are from the job's record, the rest is the client's."""

    arrival: Arrival
    created: float
    started: float
    finished: float
    first: float
    chunks: tuple[float, ...]
    end: float

    @property
    def ttft(self) -> float:
        """From the intended time, as the model's."""
        return self.first - self.arrival.at


class Real:
    """A pool that answers. `step_ms`: what a step of the scripted engine takes; 0: it is the random model."""

    def __init__(self, port: int, model: str, store: redis.Redis, step_ms: int) -> None:
        self._port = port
        self._model = model
        self._store = store
        self._step_ms = step_ms

    def play(self, arrivals: Iterable[Arrival], seed: int = 0) -> list[Seen]:
        """Send them at their times, wait for the last answer. Raises if one is not complete."""
        rng = random.Random(seed)
        arrivals = list(arrivals)
        bodies = iter([chat(self._model, self._text(rng, each), each.answer, ignore_eos=True) for each in arrivals])
        plan = open_loop("model", [each.at for each in arrivals], 0.0, lambda: next(bodies), 300.0)
        begin = time.monotonic() + LEAD_S
        wall = time.time() + LEAD_S
        records = uvloop.run(Generator(plan, "127.0.0.1", self._port, begin).run())
        wrong = [record for record in records if record.error or record.tokens == 0 or not record.chunks]
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {len(records)} answers are not complete, as in {wrong[0]}")
        order = sorted(range(len(records)), key=lambda number: records[number].sent)
        marks = dict(zip(order, self._records(wall), strict=True))
        return [
            Seen(arrival, *marks[number], record.chunks[0], tuple(record.chunks), record.end)
            for number, (arrival, record) in enumerate(zip(arrivals, records, strict=True))
        ]

    def _text(self, rng: random.Random, asked: Arrival) -> str:
        return f"[tokens={asked.answer}] [step_ms={self._step_ms}]" if self._step_ms else words(rng, asked.prompt)

    def _records(self, wall: float) -> list[tuple[float, float, float]]:
        """When jobs were created, started and finished, in the order of their creation; then they are forgotten."""
        names = list(self._store.scan_iter(key("job", "*"), count=1000))
        rows: list[Any] = [self._store.hmget(name, ["created", "started", "finished"]) for name in names]
        self._store.delete(*names)
        return sorted((int(row[0]) / 1000 - wall, int(row[1]) / 1000 - wall, int(row[2]) / 1000 - wall) for row in rows)


@contextmanager
def real_pool(folder: Path, lanes: int, step_ms: int = 0) -> Iterator[Real]:
    """A pool in `folder` with one worker of so many lanes, ended afterwards."""
    shape = Pool(lanes=lanes, max_waiting=100_000, fake=bool(step_ms))
    system = penstock(shape, folder if step_ms else toy_model.save(folder))
    with (
        running(system, folder / "pool") as pool,
        redis.Redis(port=_redis_port(pool.roles["redis"]), decode_responses=True) as store,
    ):
        store.delete(*(store.keys(key("job", "*")) or ["-"]))  # of the chat that showed that it answers
        yield Real(pool.port, pool.model, store, step_ms)


def _redis_port(pid: int) -> int:
    """Of a running server, which shows its address as its command line."""
    command = psutil.Process(pid).cmdline()
    return int(command[command.index("--port") + 1] if "--port" in command else command[0].rpartition(":")[2])
