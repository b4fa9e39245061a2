"""Proof that the drill can fail: every planted bug alone, in a short run with the faults that bring it to light."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chaos.breaks import BREAKS
from chaos.drill import LOSSY_JOBS_S, Bounds, Drill
from chaos.house import Plan

MINUTES = 1.2
CALM_S = 6.0
#: What a fault sees broken counts only if no other fault was at work shortly before.
PAUSE_S = (3.5, 5.0)
CLIENTS = 24
#: What a broken line does not do within these seconds it does not do.
BOUNDS = Bounds(crowd=40.0, jobs=30.0, settle=30.0, quiet=20.0)
#: No slow readers: they alone would take more than a minute.
MIX = {"stream": 25, "stored": 25, "events": 20, "poll": 8, "whole": 6, "cancel": 10, "disconnect": 6}
#: Those that only a poisoned job brings to light.
POISON = ("strikes", "alone")

#: The faults under which a missing guard shows. None: it shows in the calm, or with poisoned jobs.
FOCUS: dict[str, tuple[str, ...]] = {
    "fence": ("worker_zombie",),
    "raise": ("worker_zombie", "worker_kill"),
    "doubleappend": ("kill_writer", "redis_pause"),
    "requeue": ("worker_kill",),
    "tickets": ("ticket_lost",),
    "tick": ("redis_kill", "redis_pause"),
    "strikes": (),
    "alone": ("step_hang",),  # what a hung worker claims dies without a token, which is one strike, and no guilt
    "cancel": (),
    "idem": (),
    "orphan": (),
    "expire": (),
    "behind": ("redis_power",),
    "renew": (),
    "handoff": ("worker_drain",),
    "restore": ("worker_drain",),
    "held": ("worker_drain",),
    "resend": ("redis_kill", "redis_pause"),
    "gapfill": ("kill_subscription",),
    "double": ("kill_subscription", "api_kill"),
    "relay": ("redis_power",),
}


#: The same drill with nothing planted, which must find nothing: by name, whether Redis may lose its last writes.
CONTROLS: dict[str, bool] = {"none": False, "none, everysec": True}
CONTROL_KINDS = tuple(sorted({kind for kinds in FOCUS.values() for kind in kinds} - {"redis_power"}))


def rehearsal(drill: Drill, name: str) -> Drill:
    """The drill with one guard taken out, or a control, shortened to what brings it to light."""
    lossy = BREAKS[name].lossy if name in BREAKS else CONTROLS[name]
    plan: Plan = replace(
        drill.plan,
        breaks=(name,) if name in BREAKS else (),
        folder=Path(drill.plan.folder) / name.replace(", ", "-"),
        appendfsync="everysec" if lossy else drill.plan.appendfsync,
        demos=0,
        redis_pause_s=6.0,
    )
    kinds = FOCUS[name] if name in BREAKS else ("redis_power",) if lossy else CONTROL_KINDS
    poison_every_s = 16.0 if name in POISON or name == "none" else 0.0
    return replace(
        drill,
        plan=plan,
        kinds=kinds,
        minutes=MINUTES,
        pause_s=PAUSE_S,
        poison_every_s=poison_every_s,
        calm_s=CALM_S if kinds or poison_every_s else MINUTES * 60,
        late_s=8.0,
        clients=min(drill.clients, CLIENTS),
        mix=MIX,
        bounds=replace(BOUNDS, jobs=LOSSY_JOBS_S) if lossy else BOUNDS,
        until_red=True,
    )
