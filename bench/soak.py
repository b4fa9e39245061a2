"""Does anything grow? A pool under 80 % of its measured load for half an hour, and what its processes hold all the while.

`penstock up` in a temporary folder. First its capacity is measured with a stream on every lane, then requests arrive at random
(a Poisson process of that share of the capacity), whether or not earlier ones are done. Every answer is read and its words are
counted. Every `--every` seconds: memory, open files and threads of each process, Redis' memory and keys.

Finished streams are kept for `--keep` seconds only, so that memory can be flat. Their records would stay an hour longer: the
measurement cuts that to the same time, or it would have to last for hours (`--records` leaves them alone).

    python bench/soak.py
    python bench/soak.py --minutes 5 --model fake
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import redis
import stream_client
from overhead import PATH, bodies
from pool_rig import ROOT, Served, end, environ, served, until, wait
from servers import free_port
from stream_client import BINS_PER_S

from tasks.keys import key, single

#: What counts as flat: growth by so large a share, or by so much. Streams in flight, and so files and keys, come and go.
FLAT = {
    "MB": (0.02, 3.0),
    "open files": (0.2, 10.0),
    "threads": (0.1, 3.0),
    "keys": (0.2, 100.0),
    "jobs": (0.5, 32.0),
}  # share, or so much
START_S = 180.0
PARTS = {"-m api": "API", "celery": "worker", "guard.py": "watcher", "redis-server": "Redis"}

#: Jobs in line and on lanes. If they grow, the load was more than the pool could take, and all else grows with them.
LIVE = ("waiting and running", "jobs")

Samples = dict[tuple[str, str], list[float]]


class Up:
    """`penstock up`, and what it started."""

    def __init__(self, folder: Path, model: Served, keep_s: int) -> None:
        self.port, self._folder = free_port(), folder
        (folder / "models.toml").write_text(model.toml())
        environment = environ(folder, "", self.port) | {
            "PENSTOCK_RETENTION_STREAM_S": str(keep_s), "PENSTOCK_RETENTION_S": str(keep_s), "PENSTOCK_THREADS": "1",
        }  # fmt: skip
        del environment["PENSTOCK_REDIS_URL"]
        environment.pop("REDIS_URL", None)
        command = [sys.executable, "-c", "from cli.main import app; app()", "up", "--no-flower"]
        self._said = folder / "up.log"
        with self._said.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def wait_ready(self) -> redis.Redis:
        """Its Redis, once it serves."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise SystemExit(self.said())
            return "Try it:" in self.said()

        until(ready, "penstock up", START_S)
        return redis.Redis.from_url((self._folder / "redis.url").read_text().strip(), decode_responses=True)

    def said(self) -> str:
        """Its output."""
        return self._said.read_text(errors="replace")

    def parts(self) -> dict[str, psutil.Process]:
        """Its processes by name."""
        supervisor = psutil.Process(self.process.pid)
        found = {"supervisor": supervisor}
        for child in supervisor.children(recursive=True):
            line = " ".join(child.cmdline())
            name = next((part for word, part in PARTS.items() if word in line), child.name())
            found.setdefault(name, child)
        return found


def sample(up: Up, store: redis.Redis, model: str, samples: Samples) -> None:
    """One look at everything."""
    for part, process in up.parts().items():
        with suppress(psutil.NoSuchProcess):  # a child of Redis that rewrites its file lives for a moment
            samples.setdefault((part, "MB"), []).append(process.memory_info().rss / 2**20)
            samples.setdefault((part, "open files"), []).append(process.num_fds())
            samples.setdefault((part, "threads"), []).append(process.num_threads())
    info: Any = store.info()
    samples.setdefault(("Redis' data", "MB"), []).append(info["used_memory"] / 2**20)
    jobs: Any = store.zcard(key("waiting", model)) + store.zcard(single("leases"))
    samples.setdefault(LIVE, []).append(float(jobs))
    samples.setdefault(("Redis' data", "keys"), []).append(float(info.get("db0", {}).get("keys", 0)))


def forget_records(store: redis.Redis, keep_s: int) -> None:
    """Have records of ended jobs expire as their logs do."""
    names = list(store.scan_iter(key("job", "*"), count=1000))
    pipe = store.pipeline(transaction=False)
    for name in names:
        pipe.ttl(name)
    for name, ttl in zip(names, pipe.execute(), strict=True):
        if ttl > keep_s:
            pipe.expire(name, keep_s)
    pipe.execute()


def capacity(up: Up, model: Served, options: argparse.Namespace) -> float:
    """Tokens per second with a stream on every lane."""
    refill_s = options.capacity_s
    order = {"port": up.port, "path": PATH, "streams": options.lanes, "refill_s": refill_s, "words": True}
    order["bodies"] = bodies(random.Random(options.seed), model, options.tokens, options.lanes + int(50 * refill_s))
    result = stream_client.finish(stream_client.start(order))
    if result["errors"] or result["lost"] or result["doubled"]:
        raise SystemExit(f"the pool fails before the soak: {result['example']}\n{up.said()}")
    first, last = int(refill_s / 4 * BINS_PER_S), int(refill_s * BINS_PER_S)
    made: int = sum(tokens for at, tokens in result["bins"].items() if first <= at < last)
    return made * BINS_PER_S / (last - first)


def soak(
    up: Up, store: redis.Redis, model: Served, rate: float, options: argparse.Namespace
) -> tuple[Samples, dict[str, Any]]:
    """The load, and a look every `every` seconds."""
    rng, arrivals, at = random.Random(options.seed + 1), [], 0.0
    while at < options.minutes * 60:
        arrivals.append(at)
        at += rng.expovariate(rate / options.tokens)
    order = {"port": up.port, "path": PATH, "arrivals": arrivals, "words": True}
    client = stream_client.start(order | {"bodies": bodies(rng, model, options.tokens, len(arrivals))})
    samples: Samples = {}
    begin = time.monotonic()
    for number in range(1, int(options.minutes * 60 / options.every) + 1):
        time.sleep(max(0.0, begin + number * options.every - time.monotonic()))
        if not options.records:
            forget_records(store, options.keep)
        sample(up, store, model.name, samples)
        keys = samples["Redis' data", "keys"]
        held = ", ".join(f"{part} {values[-1]:.0f}" for (part, what), values in samples.items() if what == "MB")
        print(f"{number * options.every / 60:.1f} min: MB {held}; keys {keys[-1]:.0f}", flush=True)
    return samples, stream_client.finish(client)


def slope(values: Sequence[float], every_s: float) -> float:
    """How much it grows in an hour, by the line of least squares through the last two thirds: the first warms up."""
    late = values[len(values) // 3 :]
    if len(late) < 2:
        return 0.0
    return statistics.linear_regression([at * every_s / 3600 for at in range(len(late))], late).slope


def report(samples: Samples, result: dict[str, Any], every_s: float) -> bool:
    """The table; True if all is well."""
    print(
        "\n| what | first third, median | last third, median | most | per hour | verdict |\n|---|---|---|---|---|---|"
    )
    well = steady = True
    for (part, what), values in samples.items():
        third = max(1, len(values) // 3)
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        share, absolute = FLAT[what]
        flat = last - first <= max(share * first, absolute)
        well = well and flat
        steady = steady and (flat or (part, what) != LIVE)
        grown = f"{slope(values, every_s):+.1f}"
        print(
            f"| {part}, {what} | {first:.1f} | {last:.1f} | {max(values):.1f} | {grown} | {'flat' if flat else 'GROWS'} |"
        )
    counts = {name: result[name] for name in ("sent", "done", "tokens", "errors", "lost", "doubled")}
    print("\n" + ", ".join(f"{name} {count}" for name, count in counts.items()), result["example"][-300:])
    complete = counts["sent"] == counts["done"] and not counts["errors"] + counts["lost"] + counts["doubled"]
    first_ms = sorted(1000 * seconds for seconds in result["first_s"])
    p50, p99 = first_ms[len(first_ms) // 2], first_ms[len(first_ms) * 99 // 100]
    print(f"time to first token p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    if not steady:
        print("\nThe pool fell behind its load, as when others use the machine: what grows may be the line.")
    print(f"\nVerdict: {'nothing grows' if well else 'SOMETHING GROWS'}; ", end="")
    print("nothing lost, doubled or failed." if complete else "ANSWERS WERE NOT COMPLETE.")
    return well and complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--model", default="llama-s", choices=["llama-s", "llama-nano", "fake"], help="(default llama-s)"
    )
    parser.add_argument("--lanes", type=int, default=32, help="of the worker (default 32)")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, on average (default 128)")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity (default 0.8)")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between looks (default 15)")
    parser.add_argument("--keep", type=int, default=30, help="seconds that finished streams are kept (default 30)")
    parser.add_argument("--records", action="store_true", help="keep the records of ended jobs as long as a pool does")
    parser.add_argument("--capacity-s", type=float, default=20.0, help="how long the capacity is measured (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model = served(options.model, folder, options.lanes)
        up = Up(folder, model, options.keep)
        try:
            store = up.wait_ready()
            rate = capacity(up, model, options)
            print(
                f"{os.cpu_count()} cores, seed {options.seed}; {options.model} on {options.lanes} lanes: {rate:.0f} tokens/s.",
                end=" ",
            )
            print(f"Now {options.share:.0%} of it for {options.minutes:g} minutes\n", flush=True)
            well = report(*soak(up, store, model, options.share * rate, options), options.every)
        finally:
            end(up.process)
            wait(up.process)
    sys.exit(not well)


if __name__ == "__main__":
    main()
