"""A discrete-event model of the pool: the real scripts of the line, simulated engines, arrivals and network.

    python -m bench.simulate fit       the constants of a step, from the real engine (JSON with --json FILE)
    python -m bench.simulate check     fits, calibrates on a real pool, and compares the model with runs of its own
    python -m bench.simulate million   1,000 GPUs and a million jobs in line
    python -m bench.simulate loads     time to first token at 50, 80, 95 and 110 % load
    python -m bench.simulate cells     one line against cells behind a load balancer

Each prints Markdown; docs/scaling.md says what it means. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path


def fit(options: argparse.Namespace) -> Iterator[str]:
    """The engine alone."""
    from bench.simulate_fit import measured_fit, rows

    found = measured_fit(options.rounds, lanes=options.lanes)
    if options.json:
        options.json.write_text(json.dumps(found.cost.to_json(), indent=2) + "\n")
    yield from rows(found)


def check(options: argparse.Namespace) -> Iterator[str]:
    """The engine, then a pool, then the model of it."""
    from bench import simulate_check as checks
    from bench.simulate_engine import StepCost
    from bench.simulate_fit import measured_fit, rows
    from bench.simulate_real import real_pool

    if options.step_ms:
        cost = StepCost(options.step_ms / 1000, 0.0, 0.0, budget=10**6, lanes=options.lanes)
    elif options.json and options.json.exists():
        cost = replace(StepCost(**json.loads(options.json.read_text())), lanes=options.lanes)
    else:
        found = measured_fit(options.rounds, lanes=options.lanes)
        cost = found.cost
        yield from rows(found)
    with tempfile.TemporaryDirectory() as folder, real_pool(Path(folder), options.lanes, options.step_ms) as real:
        known = checks.calibrate(real, cost)
        yield ""
        yield from checks.calibration_rows(known)
        rounds = []
        for seed in options.seeds:
            asked = checks.arrivals(seed, options.rate, options.seconds, options.burst)
            seen = checks.observed(real, asked, options.seconds)
            rounds.append((seed, seen, checks.modelled(known, asked, options.seconds)))
    yield f"\n{options.rate:g} requests/s for {options.seconds:g} s, and {options.burst} at once in the middle:\n"
    yield from checks.comparison_rows(rounds)


def million(options: argparse.Namespace) -> Iterator[str]:
    """A full line."""
    from bench import simulate_scale as scale

    yield from scale.assumptions()
    yield ""
    yield from scale.million(options.gpus, options.jobs, options.steps, (options.redis_tokens, options.redis_calls))


def loads(options: argparse.Namespace) -> Iterator[str]:
    """Steady load."""
    from bench.simulate_scale import loads as run

    yield from run(options.gpus, options.load, options.seconds, options.steps[0], options.plots)


def cells(options: argparse.Namespace) -> Iterator[str]:
    """One line or many."""
    from bench.simulate_scale import cells as run

    for share in options.load:
        yield from run(options.gpus, options.cells, share, options.seconds, options.steps[0], options.plots)
        yield ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (fit, check, million, loads, cells):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        _options(command, run.__name__)
    return parser


def _options(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    if name in ("fit", "check"):
        add("--rounds", type=int, default=5, help="rounds of each batch (default 5)")
        add("--lanes", type=int, default=32, help="lanes of the worker (default 32)")
        add("--json", type=Path, help="fit: write the constants here; check: read them, if the file exists")
    if name == "check":
        add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one comparison each (default 1 2 3)")
        add("--rate", type=float, default=4.0, help="requests per second (default 4)")
        add("--seconds", type=float, default=30.0, help="of arrivals (default 30)")
        add("--step-ms", type=int, default=0, help="the scripted engine with such steps: checks all but the fit")
        add("--burst", type=int, default=40, help="requests at once in the middle (default 40)")
    if name in ("million", "loads", "cells"):
        add("--gpus", type=int, default=1000 if name == "million" else 128, help="workers")
        add("--steps", nargs="+", default=["middle"], help="assumed steps: fast, middle, slow")
    if name == "million":
        add("--jobs", type=int, default=1_000_000, help="default 1000000")
        add("--redis-tokens", type=float, default=100_000, help="tokens/s that one Redis carries (default 100000)")
        add("--redis-calls", type=float, default=1_700, help="step calls/s of 64 tokens that it carries (default 1700)")
    if name in ("loads", "cells"):
        add("--seconds", type=float, default=120.0, help="of arrivals (default 120)")
        add("--load", type=float, nargs="+", default=[0.5, 0.8, 0.95, 1.1] if name == "loads" else [0.95], help="shares of capacity")  # fmt: skip
        add("--plots", type=Path, help="write SVG pictures into this folder")
    if name == "cells":
        add("--cells", type=int, nargs="+", default=[1, 4, 16, 64], help="default 1 4 16 64")


def main() -> None:
    """Print what was asked for."""
    options = _parser().parse_args()
    gc.set_threshold(200_000, 50, 1000)  # a million jobs live at once, and none of them in a cycle
    for row in options.run(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
