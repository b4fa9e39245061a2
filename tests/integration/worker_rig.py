"""A pool for tests of the worker: one real Redis, real worker processes, and a store to submit to and look at."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tasks.connections import connect, connect_async
from tasks.events import ChoiceEnd, Delta, End, Entry, EntryId, Started
from tasks.jobs import Job, JobSpec, JobState, Priority, new_id
from tasks.keys import key, single
from tasks.profile import WorkerCard
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore
from tests.processes import WorkerProcess, start_worker, wait_until, write_fake_model
from workers.engine import fake_model

T = TypeVar("T")
Log = list[tuple[EntryId, Entry]]


def prompt(text: str) -> tuple[int, ...]:
    """The fake model's tokens of a plain prompt."""
    return tuple(fake_model.build_tokenizer().encode(text).ids)


def expected(text: str) -> str:
    """The whole answer of the fake model at temperature 0."""
    script, rest = fake_model.read_script(text)
    ids = fake_model.answer(script, rest, Sampling(10_000, 1, temperature=0.0), 0)[:-1]
    return str(fake_model.build_tokenizer().decode(ids))


class WorkerRig:
    """Workers are started by `start` and all stopped by `close`."""

    def __init__(self, folder: Path, url: str, lanes: int = 8, **env: str) -> None:
        self.folder = folder
        self.url = url
        self.models = write_fake_model(folder, lanes)
        self.env = {"PENSTOCK_LEASE_S": "2", "PENSTOCK_STEP_TIMEOUT_S": "10"} | env
        self.redis = connect(url, "test")
        self.workers: list[WorkerProcess] = []
        self._runner = asyncio.Runner()
        self.store = self._connect()

    def _connect(self) -> JobStore:
        return JobStore(connect_async(self.url, "test"), load_settings(redis_url=self.url))

    def reconnect(self) -> None:
        """A new store, after the old one's connections were cut."""
        self.wait(self.store.close())
        self.store = self._connect()

    def close(self) -> None:
        """Stop everything that this rig started."""
        for worker in self.workers:
            worker.stop()
        self.wait(self.store.close())
        self._runner.close()
        self.redis.close()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self._runner.run(call)

    def start(self, env: Mapping[str, str] | None = None, fault: str = "") -> WorkerProcess:
        """One more worker, ready."""
        return self.launch(fault, env).wait_ready()

    def launch(self, fault: str, env: Mapping[str, str] | None = None) -> WorkerProcess:
        """One more worker, with a fault of `tests.faulty_worker`; perhaps it is never ready."""
        worker = start_worker(self.folder, self.url, self.models, self.env | dict(env or {}), fault=fault)
        self.workers.append(worker)
        return worker

    def submit(
        self, *texts: str, n: int = 1, max_tokens: int = 4000, priority: Priority = "normal", **sampling: Any
    ) -> str:
        """Submit a job with these prompts; greedy unless told otherwise."""
        wanted = Sampling(max_tokens, 7, **({"temperature": 0.0} | sampling))
        prompts = tuple(prompt(text) for text in texts)
        spec = JobSpec(new_id("job"), "completion", "fake", prompts, wanted, n=n, priority=priority)
        return self.wait(self.store.submit(spec, limit=1000)).id

    def job(self, job_id: str) -> Job:
        """The job's record."""
        found = self.wait(self.store.get(job_id))
        assert found is not None
        return found[0]

    def log(self, job_id: str) -> Log:
        """The job's log."""
        return self.wait(self.store.read_all(job_id))

    def until_tokens(self, job_id: str, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many answer tokens are logged."""
        wait_until(lambda: self.job(job_id).tokens >= count, f"{count} tokens of {job_id}", timeout_s)

    def until_over(self, *job_ids: str, timeout_s: float = 30.0) -> list[Job]:
        """Wait until the jobs have ended, and check what must hold of every ended job."""
        for job_id in job_ids:
            wait_until(lambda one=job_id: self.job(one).state.terminal, f"the end of {job_id}", timeout_s)  # type: ignore[misc]
            self.check(job_id)
        return [self.job(job_id) for job_id in job_ids]

    def check(self, job_id: str) -> None:
        """Dense seqs, dense token indices, one terminal entry at the end, no lease and no place left."""
        log, job = self.log(job_id), self.job(job_id)
        assert [name.seq for name, _ in log] == list(range(1, len(log) + 1))
        assert [name for name, _ in log] == sorted(name for name, _ in log)
        ends = [entry for _, entry in log if isinstance(entry, End)]
        assert ends == [log[-1][1]]
        assert ends[0].state == job.state
        tokens: dict[int, int] = {}
        for _, entry in log:
            if isinstance(entry, Delta):
                assert entry.index == tokens.get(entry.choice, 0)
                tokens[entry.choice] = entry.index + len(entry.tokens)
        assert ends[0].tokens == sum(tokens.values()) == job.tokens
        assert self.redis.zscore(single("leases"), job_id) is None
        assert self.redis.zscore(key("waiting", "fake"), job_id) is None

    def text(self, job_id: str, choice: int = 0) -> str:
        """The text of a choice."""
        log = self.log(job_id)
        return "".join(e.text for _, e in log if isinstance(e, Delta) and e.choice == choice)

    def end(self, job_id: str) -> End:
        """The terminal entry."""
        entry = self.log(job_id)[-1][1]
        assert isinstance(entry, End)
        return entry

    def attempts(self, job_id: str) -> list[Started]:
        """The attempts in the log."""
        return [entry for _, entry in self.log(job_id) if isinstance(entry, Started)]

    def choice_ends(self, job_id: str) -> dict[int, str]:
        """The finish reasons of choices that ended before the last."""
        return {e.choice: e.finish for _, e in self.log(job_id) if isinstance(e, ChoiceEnd)}

    def cards(self) -> list[WorkerCard]:
        """The workers that were heard of lately."""
        return self.wait(self.store.workers())

    def succeeded(self, *job_ids: str) -> bool:
        """True if all these jobs have succeeded."""
        return all(self.job(job_id).state is JobState.SUCCEEDED for job_id in job_ids)
