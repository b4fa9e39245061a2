"""`python -m chaos`: the storm, its table, and whether it was green. `make chaos` calls it.

Exit status: 0 green, 1 red. With `--break` a guard is taken out first, and red is what it should be, in a short run with
the faults that bring it to light; `--break all` tries every planted bug and is green if each was caught.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from chaos import drill, rehearsal, report
from chaos.breaks import BREAKS
from chaos.drill import Drill, say_aloud
from chaos.faults import ALWAYS, FAULTS
from chaos.house import Plan

#: Of a full run, how long each of these takes, in which Redis loses writes; with a table of its own.
LOSSY_SHARE = 0.1
#: Between their faults, so that answers are under way when Redis dies.
LOSSY_PAUSE_S = (2.0, 5.0)
LOSSY_KINDS = {"everysec": ("redis_kill", "redis_power"), "failover": ("redis_failover", "worker_kill")}


def main() -> int:
    """Returns the exit status."""
    asked = _arguments()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(10**6)
    say_aloud(f"seed {seed}")
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="penstock-chaos-"))
    order = _drill(asked, seed, folder)
    if asked.broken == "all":
        return _rehearse(order)
    if asked.broken:
        order = rehearsal.rehearsal(order, asked.broken)
    runs = [asyncio.run(drill.run(order, say_aloud))]
    for name, minutes in (("everysec", asked.everysec), ("failover", asked.failover)):
        if minutes and not order.lossy:
            runs.append(asyncio.run(drill.run(_lossy(order, name, minutes), say_aloud)))
    text = "\n\n".join("\n".join(report.lines(one)) for one in runs)
    say_aloud("\n" + text)
    if asked.table:
        asked.table.write_text(text + "\n")
    say_aloud(f"logs in {folder}")
    return 1 if any(list(one.reasons()) for one in runs) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=22.0)
    parser.add_argument("--seed", type=int, help="of all draws; a fresh one is printed")
    parser.add_argument("--break", dest="broken", default="", help=f"all, or one of {', '.join(BREAKS)}")
    parser.add_argument("--kinds", default=",".join(ALWAYS), help=f"faults, of {', '.join(FAULTS)}; empty: none")
    parser.add_argument("--appendfsync", choices=("always", "everysec"), default="always")
    parser.add_argument("--everysec", type=float, help="minutes of a second run under everysec; 0: none")
    parser.add_argument("--failover", type=float, help="minutes of a third, with failovers to a replica; 0: none")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--fakes", type=int, default=2)
    parser.add_argument("--demos", type=int, default=1)
    parser.add_argument("--no-wing", action="store_true")
    parser.add_argument("--lease", type=float, default=2.0)
    parser.add_argument("--step-timeout", type=float, default=4.0)
    parser.add_argument("--calm", type=float, default=15.0, help="seconds without faults at the beginning")
    parser.add_argument("--pause", type=float, nargs=2, default=(0.3, 2.0), help="seconds between two faults")
    parser.add_argument("--poison-every", type=float, default=90.0, help="seconds; 0: none")
    parser.add_argument("--redis-pause", type=float, default=20.0, help="seconds that redis_pause takes")
    parser.add_argument("--folder", type=Path, help="for logs and data; a new one in the temporary folder")
    parser.add_argument("--table", type=Path, help="write the report there as well")
    asked = parser.parse_args()
    share = asked.minutes * LOSSY_SHARE if asked.minutes >= report.FULL_MINUTES and not asked.broken else 0.0
    for name in LOSSY_KINDS:
        if getattr(asked, name) is None:
            setattr(asked, name, share)
    if asked.folder and asked.folder.exists() and any(asked.folder.iterdir()):
        parser.error(f"--folder {asked.folder} is not empty: what an earlier run left in its Redis would be judged too")
    unknown = set(_split(asked.kinds)) - set(FAULTS) | {asked.broken} - set(BREAKS) - {"all", ""}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return asked


def _split(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _drill(asked: argparse.Namespace, seed: int, folder: Path) -> Drill:
    plan = Plan(
        folder=folder,
        lease_s=asked.lease,
        step_timeout_s=asked.step_timeout,
        appendfsync=asked.appendfsync,
        apis=asked.apis,
        fakes=asked.fakes,
        demos=asked.demos,
        wing=not asked.no_wing,
        redis_pause_s=asked.redis_pause,
        settings=drill.KEEP_S,
    )
    return Drill(
        plan=plan,
        seed=seed,
        minutes=asked.minutes,
        command=" ".join(["python -m chaos", *sys.argv[1:]]),
        kinds=_split(asked.kinds),
        clients=asked.clients,
        pause_s=(asked.pause[0], asked.pause[1]),
        poison_every_s=asked.poison_every,
        calm_s=asked.calm,
    )


def _lossy(order: Drill, name: str, minutes: float) -> Drill:
    """A Redis that is killed, and loses what it had not yet synced or replicated: what that costs."""
    fsync = "everysec" if name == "everysec" else order.plan.appendfsync
    folder = order.plan.folder / name
    plan = replace(order.plan, appendfsync=fsync, replica=name == "failover", folder=folder, demos=0)
    bounds = replace(order.bounds, jobs=drill.LOSSY_JOBS_S)
    kinds, pause_s = LOSSY_KINDS[name], LOSSY_PAUSE_S
    return replace(order, plan=plan, kinds=kinds, minutes=minutes, pause_s=pause_s, poison_every_s=0.0, bounds=bounds)


def _rehearse(order: Drill) -> int:
    """Every planted bug alone, and first, as a control, none. Returns 0 if each was caught, and only those."""
    rows, wrong = [], []
    for name in (*rehearsal.CONTROLS, *BREAKS):
        say_aloud(f"without the guard {name}" if name in BREAKS else f"with all guards, {name}")
        done = asyncio.run(drill.run(rehearsal.rehearsal(order, name), say_aloud))
        caught = ", ".join(done.broken())
        first = next((finding.text for finding in done.red()), "")
        expected = BREAKS[name].seen_as if name in BREAKS else "nothing"
        rows.append(f"| {name} | {expected} | {caught or 'nothing'} | {first[:90].replace('|', '/')} |")
        say_aloud(rows[-1])
        wrong += [name] if bool(caught) is not (name in BREAKS) else []
    say_aloud("\n| planted bug | expected | caught by | the first finding |\n|---|---|---|---|\n" + "\n".join(rows))
    say_aloud(f"RED: {', '.join(wrong)}" if wrong else "GREEN: each was caught, and no false alarm was raised")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
