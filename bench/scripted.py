"""An API process of a measurement's own, behind it a Redis of its own and a worker that says what the script wants."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from servers import free_port, own_redis

from tasks.connections import connect
from tasks.events import Delta, End, Entry, encode
from tasks.ledger import Claim, JobLedger, Write
from tasks.profile import ModelProfile, WorkerCard
from tasks.settings import Settings
from workers.engine import fake_model

MODEL = "fake"
#: Longer than any round: nothing is renewed.
LEASE_S = 900.0


class ScriptedWorker:
    """Claims jobs and writes their entries, many per step, as a real worker does; there is no engine."""

    def __init__(self, redis_url: str, lanes: int) -> None:
        self._ledger = JobLedger(connect(redis_url, "scripted"), Settings(redis_url=redis_url, lease_s=LEASE_S))
        self._lanes = lanes
        self._running: list[Claim] = []
        self._said = 0
        tokenizer = fake_model.build_tokenizer()
        profile = ModelProfile(
            tokenizer=tokenizer.to_str(),
            chat_template=fake_model.CHAT_TEMPLATE,
            special_tokens={"eos_token": fake_model.END},
            max_model_len=4096,
            vocab_size=tokenizer.get_vocab_size(),
            max_num_seqs=lanes,
        )
        self._ledger.publish_profile(MODEL, profile)
        now = time.time()
        card = WorkerCard("scripted", MODEL, "fake", "ready", [], "cpu", lanes, 0, "host", 1, now, now)  # type: ignore[arg-type]
        self._ledger.beat(card, 3600.0)

    def claim(self, count: int) -> None:
        """Take so many jobs out of the line."""
        self._running, self._said = [], 0
        while len(self._running) < count:
            claim = self._ledger.claim(MODEL, "scripted")
            if isinstance(claim, Claim):
                self._running.append(claim)
            else:
                time.sleep(0.05)

    def say(self, text: str) -> None:
        """One token for every running job, in steps of `lanes` jobs."""
        self._write([Delta(0, self._said, (5,), text)], "")
        self._said += 1

    def end(self) -> None:
        """Every running job is done."""
        self._write([End("succeeded", self._said, 0, "stop")], "succeeded")

    def _write(self, entries: Sequence[Entry], state: str) -> None:
        rows = [(encode(entry), int(isinstance(entry, Delta))) for entry in entries]
        for at in range(0, len(self._running), self._lanes):
            jobs = self._running[at : at + self._lanes]
            answers = self._ledger.step(
                [Write(job.spec.id, job.fence, job.seq + self._said + 1, rows, state) for job in jobs]
            )
            if bad := {answer.verdict for answer in answers} - {"ok"}:
                raise SystemExit(f"Redis refused a step: {bad}")


class Server:
    """A process that serves HTTP on a port of its own."""

    def __init__(self, arguments: Sequence[str], port: int, env: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=inherited | env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._measured = psutil.Process(self.process.pid)

    def cpu_s(self) -> float:
        """Processor time so far, user and system."""
        times = self._measured.cpu_times()
        return times.user + times.system

    def memory_mb(self) -> float:
        """Resident memory."""
        return self._measured.memory_info().rss / 1e6

    def wait(self, path: str) -> None:
        """Until it answers 200 there."""
        for _ in range(600):
            try:
                if httpx.get(self.url + path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"{self.process.args!r} does not serve {path}")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@contextmanager
def penstock(folder: Path, lanes: int) -> Iterator[tuple[Server, ScriptedWorker]]:
    """The API as `python -m api` serves it, ready to take jobs."""
    models = folder / "models.toml"
    models.write_text(f'[[model]]\nname = "{MODEL}"\nengine = "fake"\nmax_num_seqs = {lanes}\nmax_waiting = 10000000\n')
    with own_redis(folder / "redis") as redis_url:
        worker = ScriptedWorker(redis_url, lanes)
        port = free_port()
        env = {"REDIS_URL": redis_url, "MODELS": str(models), "PORT": str(port), "LEASE_S": str(LEASE_S)}
        env |= {"DATA_DIR": str(folder), "LOG_LEVEL": "WARNING"}
        server = Server(["api"], port, {f"PENSTOCK_{name}": value for name, value in env.items()})
        try:
            server.wait("/readyz")
            yield server, worker
        finally:
            server.stop()
