"""`make bench`: Penstock beside what one could run instead, under the same loads, on the same model and machine.

The systems take turns: one is started, gets every load, and is stopped; the order moves on by one each round. A system
whose environment is missing is skipped, saying so. Results are kept in a file after every load, tables are printed from
it, and `--table FILE` prints those of an earlier run.

    python -m bench.compare --rounds 3 --seed 11
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import toy_model
from bench.compare_report import print_report
from bench.load import run_load
from bench.load_plan import Body, Plan, burst, chat, closed_loop, open_loop, poisson, words
from bench.load_report import Result, summarise
from bench.peers import SYSTEMS, add_environments, build, say
from bench.pools import ROOT, Pool, Running, System, penstock, running
from bench.usage import Usage

PROMPT_TOKENS = 32


@dataclass
class Comparison:
    """All rounds. `capacity`: Penstock's requests per second when it is full, which the open loops are set by."""

    options: argparse.Namespace
    folder: Path
    capacity: float
    results: list[Result] = field(default_factory=list)
    _runs: int = 0

    def run(self, chosen: list[System]) -> None:
        """Every system in every round."""
        for number in range(self.options.rounds):
            for turn in range(len(chosen)):
                self._run_system(chosen[(turn + number) % len(chosen)], number)

    def measure_capacity(self, system: System) -> None:
        """Penstock with as many clients as it has lanes."""
        with self._running(system) as pool:
            plan = closed_loop(self.options.lanes, self.options.seconds, self.options.most, self._body(pool, 0), 60)
            summary = summarise(run_load(plan, pool.port), self.options.tokens, self.options.deadline)
        self.capacity = summary.tokens_per_s / self.options.tokens
        say(f"penstock's capacity: {self.capacity:.1f} requests per second")

    def keep(self) -> dict[str, Any]:
        """Write what is known so far, and give it back."""
        asked = ("seed", "rounds", "tokens", "deadline", "patience")
        kept = {
            "options": {name: getattr(self.options, name) for name in asked},
            "capacity": self.capacity,
            "results": [asdict(result) for result in self.results],
        }
        self.options.results.parent.mkdir(parents=True, exist_ok=True)
        self.options.results.write_text(json.dumps(kept))
        return kept

    def _run_system(self, system: System, number: int) -> None:
        say(f"round {number + 1}: {system.name}")
        try:
            with self._running(system) as pool:
                for plan in self._plans(pool, number):
                    self._run_load(system, pool, plan, number)
        except RuntimeError as error:
            say(str(error))

    def _run_load(self, system: System, pool: Running, plan: Plan, number: int) -> None:
        with Usage(pool.roles) as usage:
            outcome = run_load(plan, pool.port, processes=self.options.processes)
        summary = summarise(outcome, self.options.tokens, self.options.deadline)
        self.results.append(Result(system.name, plan.name, number, summary, usage.used))
        self.keep()
        say(f"  {plan.name}: {summary.tokens_per_s:.0f} tokens/s, {summary.complete}/{summary.asked} {summary.errors}")

    def _plans(self, pool: Running, number: int) -> Iterator[Plan]:
        """The loads of a round: the same for every system."""
        options, rng, body = self.options, random.Random(f"{self.options.seed}-{number}"), self._body(pool, number)
        for clients in options.clients:
            yield closed_loop(clients, options.seconds, options.most, body, options.patience)
        for share in options.poisson:
            times = poisson(rng, self.capacity * share, options.seconds)
            yield open_loop(f"Poisson {share:.0%}", times, options.seconds, body, options.patience)
        for count in options.bursts:
            yield open_loop(f"burst of {count}", burst(rng, count), 0.0, body, options.patience)

    def _body(self, pool: Running, number: int) -> BodyMaker:
        return BodyMaker(pool.model, random.Random(f"{self.options.seed}-{number}-prompts"), self.options.tokens)

    def _running(self, system: System) -> AbstractContextManager[Running]:
        self._runs += 1
        return running(system, self.folder / f"run-{self._runs}")


@dataclass
class BodyMaker:
    """Chat requests with prompts from a seed."""

    model: str
    rng: random.Random
    tokens: int

    def __call__(self) -> Body:
        return chat(self.model, words(self.rng, PROMPT_TOKENS), self.tokens)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32, 64], help="closed loops")
    parser.add_argument("--poisson", type=float, nargs="*", default=[0.5, 0.8], help="shares of penstock's capacity")
    parser.add_argument("--bursts", type=int, nargs="*", default=[200, 500])
    parser.add_argument("--seconds", type=float, default=15.0, help="how long closed and Poisson loads send")
    parser.add_argument("--most", type=int, default=4000, help="most requests of a closed loop")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds within which an answer counts as good")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which a client gives up")
    parser.add_argument("--lanes", type=int, default=64, help="max_num_seqs of penstock")
    parser.add_argument("--api-processes", type=int, default=1, help="of penstock")
    parser.add_argument("--capacity", type=float, default=0.0, help="requests per second; default: measured first")
    parser.add_argument("--processes", type=int, default=1, help="of the load generator")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    add_environments(parser)
    parser.add_argument("--results", type=Path, default=ROOT / ".work/bench/compare.json")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/plots")
    parser.add_argument("--table", type=Path, help="print the tables of such a file, and measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the plots."""
    options = read_options()
    if options.table:
        print_report(json.loads(options.table.read_text()), options.plots)
        return
    say(f"seed {options.seed}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        pool = Pool(options.lanes, api_processes=options.api_processes)
        chosen = build(Path(name), pool, options)
        comparison = Comparison(options, Path(name), options.capacity)
        if not options.capacity and options.poisson:
            comparison.measure_capacity(penstock(pool, Path(name) / toy_model.NAME))
        comparison.run(chosen)
    print_report(comparison.keep(), options.plots)


if __name__ == "__main__":
    main()
