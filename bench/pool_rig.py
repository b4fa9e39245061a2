"""A pool of a measurement's own: a Redis, an API and Celery workers as processes, in a temporary folder.

What it starts it ends, by process id. It also says what its processes cost: CPU time and memory.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx
import psutil
import redis
from servers import free_port

ROOT = Path(__file__).parent.parent
ENTRY = """[[model]]
name = "{name}"
engine = "{engine}"
path = "{path}"
dtype = "float32"
device = "cpu"
max_num_seqs = {lanes}
max_model_len = {context}
max_waiting = 100000
"""
START_S, END_S = 180.0, 15.0
PROMPT_TOKENS, VOCABULARY = 32, 1400  # less than any real model here has


@dataclass(frozen=True)
class Served:
    """A model of the pool. `path` is a folder, or empty for the fake engine."""

    name: str
    engine: str
    path: str = ""
    lanes: int = 64
    context: int = 4096

    def toml(self) -> str:
        """Its entry of models.toml."""
        return ENTRY.format(**vars(self))


def served(name: str, folder: Path, lanes: int) -> Served:
    """`fake`, `demo`, or a random model of `contenders.SHAPES`, which is saved in `folder` with a tokenizer of words."""
    if name == "fake":
        return Served(name, "fake", lanes=lanes, context=8192)
    if name == "demo":
        return Served(name, "transformers", str(ROOT / "models/demo"), lanes)
    save_random(name, folder / name)
    return Served(name, "transformers", str(folder / name), lanes)


def prompt_of(rng: random.Random, model: Served, tokens: int, step_ms: int = 20) -> list[int]:
    """Token ids that share nothing with others; to the fake engine they say how long its answer and its steps are."""
    if model.engine == "fake":
        from workers.engine.fake_model import build_tokenizer

        text = f"[tokens={tokens}] [step_ms={step_ms}]"
        return list(build_tokenizer().encode(text, add_special_tokens=False).ids)
    return [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)]


def save_random(shape: str, folder: Path) -> None:
    """A random model, every token of which is a word."""
    from contenders import random_model
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = random_model(shape)
    model.save_pretrained(folder)
    words = {f"w{token}": token for token in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(folder)


class PoolRig:
    """The processes of one pool. Use as a context manager: leaving it ends them."""

    def __init__(self, folder: Path, redis_url: str, models: Iterable[Served], **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.redis_url = redis_url
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        (folder / "models.toml").write_text("\n".join(model.toml() for model in models))
        self.environ = environ(folder, redis_url, self.port) | settings
        self._log = (folder / "pool.log").open("wb")
        self.api: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> PoolRig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        everything = [*self.api, *self.workers]
        for process in everything:
            end(process)
        for process in everything:
            wait(process)
        self._log.close()

    def start_api(self) -> None:
        """The API; `wait_ready` waits for it."""
        self.api.append(self._start({}, "api"))

    def start_workers(self, model: str, count: int = 1) -> None:
        """More workers of a model."""
        for _ in range(count):
            self.workers.append(self._start({"PENSTOCK_MODEL": model}, "celery", "-A", "workers.main", "worker"))

    def stop_workers(self, keep: int) -> None:
        """Let all but the first `keep` drain and end."""
        ending, self.workers = self.workers[keep:], self.workers[:keep]
        for process in ending:
            end(process)
        for process in ending:
            wait(process)

    def wait_ready(self) -> None:
        """Until the API sees every worker, ready."""
        pids = {process.pid for process in self.workers}

        def ready() -> bool:
            for process in [*self.api, *self.workers]:
                if process.poll() is not None:
                    raise SystemExit(f"a process of the pool ended:\n{self.tail()}")
            with suppress(httpx.HTTPError, KeyError):
                cards = httpx.get(f"{self.url}/v1/workers", timeout=5).json()["data"]
                seen = {card["pid"] for card in cards if card["state"] == "ready"}
                return pids <= seen and httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
            return False

        until(ready, "a pool that is ready", START_S)

    def processes(self) -> dict[str, list[int]]:
        """Process ids by part."""
        parts = {"API": self.api, "worker": self.workers}
        pids = {part: [one.pid for one in processes] for part, processes in parts.items()}
        return pids | {"Redis": [redis_pid(self.redis_url)]}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each part so far."""
        return {part: sum(map(cpu_s, pids)) for part, pids in self.processes().items()}

    def tail(self) -> str:
        """The end of what the processes said."""
        return (self.folder / "pool.log").read_text(errors="replace")[-3000:]

    def _start(self, own: dict[str, str], *module: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *module]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environ | own, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )


def environ(folder: Path, redis_url: str, port: int) -> dict[str, str]:
    """The environment of a pool's processes: this one's, without its settings of Penstock."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return inherited | {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_MODELS": str(folder / "models.toml"),
        "PENSTOCK_DATA_DIR": str(folder),
        "PENSTOCK_PORT": str(port),
        "PENSTOCK_LOG_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }


def until(look: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait for something; SystemExit if it does not come."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process of ours to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


def wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end, which comes."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_S)


def redis_pid(url: str) -> int:
    """The process id of a server."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
