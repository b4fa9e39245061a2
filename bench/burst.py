"""The burst scene: 2,000 requests within a second onto a pool of 64 lanes, beside a trickle of interactive ones.

What is asked: does every request get an answer, be it a refusal that says when to come back; do the interactive ones
stay quick; how soon is the line through; and was the wait that each request was told when it was accepted the truth?
The pool is Penstock's with two workers of the scripted engine; `--engine llama-s` takes the random model instead, and
with it `--systems` names others to compare.

    python -m bench.burst --seed 11
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path

from bench.burst_report import BURST, BURST_AT_S, TRICKLE, draw, report
from bench.load import run_load
from bench.load_plan import Body, Plan, Shot, burst, chat, poisson, words
from bench.peers import SYSTEMS, add_environments, build, say
from bench.pools import ROOT, Pool, running
from bench.usage import Usage


def scene(options: argparse.Namespace, model: str, penstock: bool) -> Plan:
    """Both classes, by their times. The trickle goes on for the whole scene."""
    rng = random.Random(options.seed)
    urgent = {"priority": "interactive"} if penstock else {}
    crowded = {"priority": options.priority} if penstock else {}
    trickle = [
        Shot(at, TRICKLE, body(rng, options, model, options.trickle_tokens, urgent))
        for at in poisson(rng, options.trickle, options.seconds)
    ]
    crowd = [
        Shot(at, BURST, body(rng, options, model, options.tokens, crowded))
        for at in burst(rng, options.count, options.within, BURST_AT_S)
    ]
    shots = sorted([*trickle, *crowd], key=lambda shot: shot.at)
    return Plan("burst scene", shots, options.seconds, 0, options.patience)


def body(rng: random.Random, options: argparse.Namespace, model: str, tokens: int, extra: dict[str, str]) -> Body:
    """A chat of exactly so many tokens, by the script of the fake engine or to the random model."""
    if options.engine == "fake":
        return chat(model, f"[tokens={tokens}] [step_ms={options.step_ms}] {rng.random()}", tokens, **extra)
    return chat(model, words(rng, 32), tokens, **extra)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="requests of the burst")
    parser.add_argument("--within", type=float, default=1.0, help="seconds that they come in")
    parser.add_argument("--trickle", type=float, default=3.0, help="interactive requests per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the trickle goes on")
    parser.add_argument("--tokens", type=int, default=64, help="of a burst's answer")
    parser.add_argument("--trickle-tokens", type=int, default=16, help="of an interactive answer")
    parser.add_argument("--engine", choices=["fake", "llama-s"], default="fake")
    parser.add_argument("--step-ms", type=int, default=40, help="a step of the scripted engine")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=32, help="of each worker")
    parser.add_argument("--api-processes", type=int, default=1)
    parser.add_argument("--max-waiting", type=int, default=1000, help="the longest line; what is beyond gets 429")
    parser.add_argument("--priority", choices=["interactive", "normal", "batch"], default="normal", help="of the burst")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds after which a client gives up")
    parser.add_argument("--processes", type=int, default=1, help="of the load generator")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=["penstock"], help="others need --engine llama-s"
    )
    add_environments(parser)
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/plots")
    options = parser.parse_args()
    if options.engine == "fake" and options.systems != ["penstock"]:
        parser.error("--systems: only penstock has the scripted engine; add --engine llama-s")
    return options


def main() -> None:
    """Play the scene against each system."""
    options = read_options()
    pool = Pool(options.lanes, options.workers, options.max_waiting, options.engine == "fake", options.api_processes)
    print(
        f"Seed {options.seed}, {os.cpu_count()} cores: {options.count} requests of {options.tokens} tokens within "
        f"{options.within:g} s beside {options.trickle:g} interactive ones of {options.trickle_tokens} per second; "
        f"{options.workers} workers of {options.lanes} lanes, engine {options.engine}, at most {options.max_waiting} wait\n"
    )
    with tempfile.TemporaryDirectory() as name:
        for number, system in enumerate(build(Path(name), pool, options)):
            say(system.name)
            with running(system, Path(name) / f"run-{number}") as server, Usage(server.roles) as usage:
                plan = scene(options, server.model, system.name == "penstock")
                outcome = run_load(plan, server.port, processes=options.processes)
            report(system, outcome, usage.used)
            print(f"![burst]({draw(system.name, outcome, options.plots).name})\n", flush=True)


if __name__ == "__main__":
    main()
