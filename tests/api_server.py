"""Runs the real API on a real port inside a test, and plays a worker by script: `JobLedger` without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import redis
import uvicorn

from api.app import create_app
from tasks.catalog import Catalog, ModelEntry
from tasks.connections import connect
from tasks.events import ChoiceEnd, Delta, End, Entry, encode
from tasks.jobs import JobSpec
from tasks.ledger import Claim, JobLedger, Write
from tasks.profile import ModelProfile, WorkerCard
from tasks.settings import Settings
from tasks.tenants import Tenant, Tenants
from tests.processes import free_port
from workers.engine import fake_model

MODEL = "fake"
HELLO: Any = [{"role": "user", "content": "hello"}]


def chat_body(**fields: Any) -> dict[str, Any]:
    """A good chat request with `fields` on top."""
    return {"model": MODEL, "messages": HELLO, **fields}


def fake_profile(**changes: Any) -> ModelProfile:
    """The profile of the fake engine's model."""
    tokenizer = fake_model.build_tokenizer()
    values: dict[str, Any] = {
        "tokenizer": tokenizer.to_str(),
        "chat_template": fake_model.CHAT_TEMPLATE,
        "special_tokens": {"eos_token": fake_model.END},
        "max_model_len": 512,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_num_seqs": 8,
    }
    return ModelProfile(**(values | changes))


def settings_of(redis_url: str, **changes: Any) -> Settings:
    """Settings of a test's API: short terms, so that nothing waits long."""
    return Settings(redis_url=redis_url, port=free_port(), **changes)


@contextmanager
def serve(settings: Settings, *entries: ModelEntry, tenants: Sequence[Tenant] = ()) -> Iterator[str]:
    """The API in a thread; yields its URL."""
    models = list(entries) or [ModelEntry(name=MODEL, engine="fake", max_waiting=50)]
    config = uvicorn.Config(
        create_app(settings, Catalog(models), Tenants(list(tenants))),
        host="127.0.0.1",
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=4,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            assert time.monotonic() < deadline, "the API did not start in time"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{settings.port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the API did not stop"


class Attempt:
    """A claimed job: says what the script wants."""

    def __init__(self, ledger: JobLedger, claim: Claim) -> None:
        self._ledger = ledger
        self._seq = claim.seq
        self._fence = claim.fence
        self._index = [0] * claim.spec.choices
        self.spec: JobSpec = claim.spec
        for _, entry in ledger.read_all(claim.spec.id):
            if isinstance(entry, Delta):
                self._index[entry.choice] += len(entry.tokens)

    def say(self, *texts: str, choice: int = 0, logprobs: bool = False) -> str:
        """One entry of one token per text; returns the store's verdict."""
        entries: list[tuple[Entry, int]] = []
        for text in texts:
            entries.append((self._delta(text, choice, logprobs), 1))
        return self._write(entries)

    def finish_choice(self, choice: int, finish: str = "stop") -> str:
        """End one of several choices."""
        return self._write([(ChoiceEnd(choice, finish), 0)])

    def end(self, finish: str = "stop", text: str | None = None, choice: int = 0) -> str:
        """Succeed, with a last token if there is a `text`."""
        entries: list[tuple[Entry, int]] = [] if text is None else [(self._delta(text, choice, False), 1)]
        end = End("succeeded", sum(self._index), choice, finish)
        return self._write([*entries, (end, 0)], "succeeded")

    def fail(self, code: str, message: str, state: str = "failed") -> str:
        """End without success."""
        end = End(state, sum(self._index), code=code, message=message)
        return self._write([(end, 0)], state, code, message)

    def give_back(self) -> bool:
        """Back into line."""
        return self._ledger.release(self.spec.id, self._fence)

    def renew(self) -> str:
        """What the store wants this owner to do."""
        return self._ledger.renew([(self.spec.id, self._fence, self._seq)])[0].verdict

    def _delta(self, text: str, choice: int, logprobs: bool) -> Delta:
        index = self._index[choice]
        self._index[choice] += 1
        token = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
        rows = ({**token, "top_logprobs": [token]},) if logprobs else None
        return Delta(choice, index, (index + 5,), text, rows)

    def _write(self, entries: list[tuple[Entry, int]], state: str = "", code: str = "", message: str = "") -> str:
        rows = [(encode(entry), tokens) for entry, tokens in entries]
        write = Write(self.spec.id, self._fence, self._seq + 1, rows, state, code, message)
        self._seq += len(rows)
        return self._ledger.step([write])[0].verdict


class ScriptedWorker:
    """A worker without an engine: appears in the pool, claims, and lets the test speak."""

    def __init__(self, redis_url: str, model: str = MODEL, name: str = "scripted") -> None:
        self.ledger = JobLedger(connect(redis_url, "scripted"), Settings(redis_url=redis_url))
        self.model = model
        self.name = name

    def appear(self, state: str = "ready", error: str | None = None, **changes: Any) -> ScriptedWorker:
        """Show a card, and unless it failed or loads, the model's profile."""
        if state in ("ready", "draining"):
            self.ledger.publish_profile(self.model, fake_profile(**changes))
        now = time.time()
        card = WorkerCard(
            *(self.name, self.model, "fake", state, [], "cpu", 4, 0, "host", 1, now, now),  # type: ignore[arg-type]
            error=error,
        )
        self.ledger.beat(card, 600.0)
        return self

    def claim(self, timeout_s: float = 10.0) -> Attempt:
        """The next job; fails if none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            claim = self.ledger.claim(self.model, self.name)
            if isinstance(claim, Claim):
                return Attempt(self.ledger, claim)
            assert time.monotonic() < deadline, "no job came"
            time.sleep(0.01)

    def close(self) -> None:
        """Close the connections."""
        self.ledger.close()


@dataclass
class ApiLine:
    """One running API with a scripted worker behind it."""

    url: str
    redis_url: str
    worker: ScriptedWorker
    sdk: openai.OpenAI
    http: httpx.Client

    def later(self, *texts: str, finish: str = "stop") -> threading.Thread:
        """Answer the next job, in the background."""

        def answer() -> None:
            attempt = self.worker.claim()
            attempt.say(*texts)
            attempt.end(finish)

        thread = threading.Thread(target=answer)
        thread.start()
        return thread

    def keys(self, pattern: str) -> list[str]:
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            return sorted(client.scan_iter(pattern))


@contextmanager
def api_line(redis_url: str, **settings: Any) -> Iterator[ApiLine]:
    """An API with a scripted worker that is ready."""
    worker = ScriptedWorker(redis_url).appear()
    with (
        serve(settings_of(redis_url, **settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as sdk,
        httpx.Client(base_url=url, timeout=20) as http,
    ):
        yield ApiLine(url, redis_url, worker, sdk, http)
    worker.close()
