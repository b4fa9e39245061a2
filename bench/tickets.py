"""How fast a burst fills the idle lanes of one worker, and how long a lane that falls free stays empty.

A Redis and one worker of its own, and jobs put in line all at once: the submits wait in a paused Redis, and run when it
is let go. What is timed is what an API process would hear: the entries on a relay's channel. For the second table more
jobs than lanes are submitted; the k-th end frees a lane for the (lanes + k)-th start. For the third, single jobs find
the worker idle.

    python bench/tickets.py --engines fake llama-s --jobs 64 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from pool_rig import save_random
from servers import own_redis

from tasks.connections import connect_async
from tasks.jobs import JobSpec, new_id
from tasks.keys import key, single
from tasks.sampling import Sampling
from tasks.settings import load_settings
from tasks.store import JobStore
from workers.engine.fake_model import build_tokenizer

ROOT = Path(__file__).parent.parent
MODEL = (
    '[[model]]\nname = "bench"\nengine = "{engine}"\npath = "{path}"\nmax_num_seqs = {lanes}\nmax_model_len = 2048\n'
)
API = "bench"
PROMPT = 16
FORKED = multiprocessing.get_context("fork")


@dataclass
class Heard:
    """When the burst was let go, and when each kind of entry was heard, in order; seconds of one clock."""

    begin: float = 0.0
    starts: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second, from the burst to the last end."""
        return self.tokens / (self.ends[-1] - self.begin)


@contextmanager
def worker(folder: Path, url: str, engine: str, lanes: int) -> Iterator[None]:
    """One worker that takes tickets, as it is started in production."""
    if engine != "fake":
        save_random(engine, folder / "model")
    kind = "fake" if engine == "fake" else "transformers"
    (folder / "models.toml").write_text(MODEL.format(engine=kind, path=folder / "model", lanes=lanes))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    settings = {"REDIS_URL": url, "MODELS": str(folder / "models.toml"), "MODEL": "bench", "DATA_DIR": str(folder)}
    environment = inherited | {f"PENSTOCK_{name}": value for name, value in settings.items()}
    log = folder / "worker.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "celery", "-A", "workers.main", "worker"]
        process = subprocess.Popen(
            command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while " ready." not in log.read_text(errors="replace"):
            if process.poll() is not None:
                raise SystemExit(f"the worker ended:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def submit(url: str, lengths: Sequence[int], step_ms: int, begin: object) -> None:
    """A process of its own: let the submits of all jobs pile up before Redis, then let them go."""

    async def run() -> None:
        store = JobStore(connect_async(url, API, len(lengths)), load_settings(redis_url=url))
        client = connect_async(url, "control")
        script = f"[tokens={max(lengths)}] [step_ms={step_ms}]"
        prompt = tuple(build_tokenizer().encode(script).ids) if step_ms else tuple(range(1, PROMPT + 1))
        await store.ping()
        await client.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
        waiting = []
        for tokens in lengths:
            sampling = Sampling(max_tokens=tokens, seed=1, temperature=0.0, ignore_eos=True)
            spec = JobSpec(new_id("job"), "completion", "bench", (prompt,), sampling)
            waiting.append(asyncio.create_task(store.submit(spec, limit=len(lengths), api=API)))
        await asyncio.sleep(0.1 + 0.002 * len(lengths))  # until all have been sent
        begin.send(time.monotonic())  # type: ignore[attr-defined]
        await client.execute_command("CLIENT", "UNPAUSE")
        await asyncio.gather(*waiting)

    asyncio.run(run())


def listen(url: str, lengths: Sequence[int], step_ms: int) -> Heard:
    """Run one burst and hear all of it."""
    heard, raw = Heard(), []
    near, far = FORKED.Pipe()
    with redis.Redis.from_url(url) as client, client.pubsub() as relay:
        client.zadd(single("apis"), {API: 1e15})  # for ever: nobody reaps on its behalf
        relay.subscribe(key("relay", API))
        submitter = FORKED.Process(target=submit, args=(url, lengths, step_ms, far))
        submitter.start()
        ends = 0
        while ends < len(lengths):
            message = relay.get_message(timeout=60)
            if message is None:
                raise SystemExit("nothing was heard for a minute")
            if message["type"] == "message":
                raw.append((time.monotonic(), message["data"]))
                ends += message["data"].count(b'"k":"end"')
        heard.begin = near.recv()
        submitter.join()
    begun: dict[str, bool] = defaultdict(bool)
    for at, data in raw:
        for job, entries in json.loads(data):
            for _, entry in entries:
                _note(heard, begun, at, job, entry)
    return heard


def _note(heard: Heard, begun: dict[str, bool], at: float, job: str, entry: dict[str, object]) -> None:
    if entry["k"] == "started":
        heard.starts.append(at)
    elif entry["k"] == "end":
        heard.ends.append(at)
    elif entry["k"] == "delta":
        heard.tokens += len(entry["t"])  # type: ignore[arg-type]
        if not begun[job]:
            heard.firsts.append(at)
        begun[job] = True


def burst_row(engine: str, rounds: Sequence[Heard]) -> str:
    """When the first, the middle and the last lane began, and their first tokens; medians of the rounds, in ms."""
    cells = []
    for times in ([one.starts for one in rounds], [one.firsts for one in rounds]):
        for part in (0, 0.5, 1):
            taken = [each[int(part * (len(each) - 1))] - one.begin for each, one in zip(times, rounds, strict=True)]
            cells.append(f"{statistics.median(taken) * 1000:.0f}")
    rate = statistics.median(one.rate for one in rounds)
    return f"| {engine} | {' | '.join(cells)} | {rate:.0f} |"


def gap_row(engine: str, lanes: int, rounds: Sequence[Heard]) -> str:
    """From the end of a job to the start, and to the first token, of the next on its lane."""
    cells = []
    for name in ("starts", "firsts"):
        gaps = sorted(
            (begin - end) * 1000
            for one in rounds
            for begin, end in zip(getattr(one, name)[lanes:], one.ends, strict=False)
        )
        cells += [f"{gaps[len(gaps) // 2]:.1f}", f"{gaps[len(gaps) * 99 // 100]:.1f}"]
    rate = statistics.median(one.rate for one in rounds)
    return f"| {engine} | {' | '.join(cells)} | {rate:.0f} |"


def single_row(engine: str, rounds: Sequence[Heard]) -> str:
    """From the submit of a job to its start and its first token."""
    cells = []
    for name in ("starts", "firsts"):
        took = sorted((getattr(one, name)[0] - one.begin) * 1000 for one in rounds)
        cells += [f"{took[len(took) // 2]:.1f}", f"{took[len(took) * 99 // 100]:.1f}"]
    return f"| {engine} | {' | '.join(cells)} |"


def main() -> None:
    """Run the rounds and print three Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["fake", "llama-s"], help="fake, or shapes of contenders.py")
    parser.add_argument("--jobs", type=int, default=64, help="lanes, and jobs in a burst (default 64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default 64)")
    parser.add_argument("--step-ms", type=int, default=15, help="a step of the fake engine (default 15)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=40, help="single jobs, one after the other (default 40)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    rng, bursts, gaps, singles = random.Random(args.seed), [], [], []
    for engine in args.engines:
        step_ms = args.step_ms if engine == "fake" else 0
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            url = stack.enter_context(own_redis(Path(name) / "redis"))
            stack.enter_context(worker(Path(name), url, engine, args.jobs))
            even = [args.tokens] * args.jobs
            heard = [listen(url, even, step_ms) for _ in range(args.rounds + 1)]
            bursts.append(burst_row(engine, heard[1:]))  # the first warms up
            mixed = [rng.randint(args.tokens // 2, 3 * args.tokens // 2) for _ in range(4 * args.jobs)]
            gaps.append(gap_row(engine, args.jobs, [listen(url, mixed, step_ms) for _ in range(args.rounds)]))
            singles.append(single_row(engine, [listen(url, [4], step_ms) for _ in range(args.singles)]))
    print(f"{args.jobs} lanes, {args.rounds} rounds, answers of {args.tokens} tokens, seed {args.seed}\n")
    print("A burst of as many jobs as lanes, ms from the submit, and the rate of the whole burst:\n")
    print("| engine | first start | middle start | last start | first token | middle token | last token | tokens/s |")
    print("|---|---|---|---|---|---|---|---|\n" + "\n".join(bursts))
    print("\nFour jobs a lane, answers from half to one and a half times as long; ms from an end to what follows:\n")
    print("| engine | next start p50 | p99 | next token p50 | p99 | tokens/s |\n|---|---|---|---|---|---|")
    print("\n".join(gaps))
    print("\nOne job on the idle worker, ms from the submit:\n")
    print("| engine | start p50 | p99 | first token p50 | p99 |\n|---|---|---|---|---|")
    print("\n".join(singles))


if __name__ == "__main__":
    main()
