"""An engine in a process of its own, with nothing around it: what a pool is measured against.

It reads orders as lines of JSON and answers each with one. `closed` keeps so many sequences running as `stream_client` keeps
streams, and counts in the same way; `first` makes one token and says how long that took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from stream_client import BINS_PER_S

from tasks.catalog import ModelEntry, load_catalog
from tasks.sampling import Sampling
from workers.engine.base import Engine, Request
from workers.engine.registry import EngineSpec, build


class EngineAlone:
    """The process."""

    def __init__(self, models: Path, name: str, environ: dict[str, str]) -> None:
        command = [sys.executable, str(Path(__file__)), str(models), name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environ
        )
        self._answer()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """What it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine's process failed")
        return dict(json.loads(line))


def load(models: Path, name: str) -> tuple[Engine, ModelEntry]:
    """The engine as a worker builds it."""
    entry = load_catalog(models).entries[name]
    same = {"path", "dtype", "device", "max_num_seqs", "max_model_len", "quantization"}
    return build(entry.engine, EngineSpec(**entry.model_dump(include=same))), entry


def request(rid: str, order: dict[str, Any]) -> Request:
    """What the API makes of a body."""
    sampling = Sampling(max_tokens=order["max_tokens"], seed=0, temperature=0.0, ignore_eos=True)
    return Request(rid, tuple(order["prompt"]), sampling)


def closed(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    """So many sequences at once for `refill_s` seconds, then to their ends."""
    bodies = iter([json.loads(body) for body in order["bodies"]])
    bins: Counter[int] = Counter()
    begin, cpu, tokens, sent = time.monotonic(), time.process_time(), 0, 0
    for _ in range(order["streams"]):
        engine.submit(request(str(sent := sent + 1), next(bodies)))
    while engine.has_work():
        events = engine.step()
        now = time.monotonic() - begin
        made = sum(len(event.tokens) for event in events)
        tokens += made
        bins[int(now * BINS_PER_S)] += made
        for event in events:
            if event.finish is not None and now < order["refill_s"]:
                engine.submit(request(str(sent := sent + 1), next(bodies)))
    last_s = time.monotonic() - begin
    return {"bins": bins, "tokens": tokens, "last_s": last_s, "cpu_s": time.process_time() - cpu}


def first(engine: Engine, order: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first token of one sequence in an engine that has nothing else to do."""
    begin, first_s = time.perf_counter(), 0.0
    engine.submit(request("one", order))
    while engine.has_work():
        if engine.step() and not first_s:
            first_s = time.perf_counter() - begin
    return {"first_s": first_s}


def main() -> None:
    engine, _ = load(Path(sys.argv[1]), sys.argv[2])
    print("{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"closed": closed, "first": first}[order["do"]](engine, order)), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
