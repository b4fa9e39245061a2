"""The planted bugs: each takes one guard out, in a line of Lua or Python, and `make chaos BREAK=<name>` must then fail.

A break is applied inside the processes of the house, before the module it is in is imported; no file is changed. Each
text must occur exactly once where it is taken out, so a break that rots is an error and not a silent pass.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from tasks import lua


class Break(NamedTuple):
    """`text` in `place` becomes `without`. A place is a script of the store (`tasks.lua.COMMON` are in all), or a module.

    `seen_as`: how it shows, for people. `lossy`: it needs a Redis that loses its last writes (`appendfsync everysec`).
    """

    place: str
    text: str
    without: str
    seen_as: str
    lossy: bool = False


FENCED = "duplicated or missing tokens after a zombie woke"
BREAKS: dict[str, Break] = {
    "fence": Break("prelude", " and r.fence == fence end", " end", FENCED),
    "raise": Break("prelude", "math.max(r.fence + 1, t - r.created)", "math.max(r.fence, 1)", FENCED),
    "doubleappend": Break(
        "step", "for i = r.seq - w.first + 2, w.n do", "for i = 1, w.n do", "jobs that hang after a repeated step"
    ),
    "requeue": Break(
        "reap", "take_away(r, t, true, max_strikes, max_losses)", "redis.call('ZREM', K.leases_, id)", "jobs lost"
    ),
    "tickets": Break("reap", "for _ = 1, math.min(short, BATCH) do", "for _ = 1, 0 do", "jobs that wait for ever"),
    "tick": Break("reap", "t - tick > away or t < tick", "t < tick", "leases lost by an outage"),
    "strikes": Break(
        "ends",
        "if r.seq == r.claim_seq + 1 then r.strikes",
        "if false then r.strikes",
        "poison that kills twenty workers",
    ),
    "alone": Break(
        "ends", "(r.strikes >= max_strikes and r.alone == 1)", "r.strikes >= 1", "innocent jobs called poisoned"
    ),
    "cancel": Break(
        "prelude", "if r.cancel == 1 then return 'cancel' end", "", "accepted cancels that end as successes"
    ),
    "idem": Break("submit", "if held then", "if false then", "two jobs for one key"),
    "orphan": Break("detach", "left == 0 and r.store == 0", "false", "jobs that run on though nobody listens"),
    "expire": Break("ends", "redis.call('EXPIRE', K.log .. r.id, r.keep)", "", "logs without TTL"),
    "behind": Break(
        "step", "if w.first > r.seq + 1 then", "if false then", "gaps after Redis lost its last writes", lossy=True
    ),
    "renew": Break(
        "workers.lease",
        "due = time.monotonic() + self._renew_s\n                self._renew()",
        "due = time.monotonic() + self._renew_s",
        "leases lost by a healthy worker",
    ),
    "handoff": Break(
        "workers.runtime",
        "released += self._ledger.release(attempt.job, attempt.fence)",
        "released += 1",
        "a drain that leaves its jobs to lapse",
    ),
    "restore": Break(
        "workers.generate",
        "attempt.restore(self._read(attempt))",
        "attempt.restore([])",
        "answers that begin again after a worker died",
    ),
    "held": Break(
        "workers.attempt", "choice.emitted += len(entry.text)", "pass", "text sent twice after a worker died"
    ),
    "resend": Break(
        "workers.publisher",
        "if not attempt.is_over and attempt.outbox.unsent():",
        "if False:",
        "answers whose last tokens are never written after a call of the store failed",
    ),
    "gapfill": Break(
        "api.reader",
        "if not first and (at.fence != self.last.fence or at.seq != self.last.seq + 1):",
        "if False:",
        "readers that miss events",
    ),
    "double": Break("api.reader", "page = page[1:]", "pass", "readers that see events twice"),
    "relay": Break(
        "api.reader",
        "if not page or page[0][0] != self.last:",
        "if False:",
        "two texts spliced after Redis lost its last writes",
        lossy=True,
    ),
}
PROGRAMS = {"celery": "workers", "api": "api"}


def take_out(names: Sequence[str], program: str) -> None:
    """Take these guards out of this process. Raises KeyError for an unknown one, ValueError for one that has rotted."""
    rows = [BREAKS[name] for name in names]
    scripts: Any = lua
    scripts.source = broken_scripts([row for row in rows if "." not in row.place])
    for row in rows:
        if row.place.startswith(PROGRAMS.get(program, "-") + "."):
            _break_module(row)


def check(names: Collection[str] = tuple(BREAKS)) -> None:
    """Raises ValueError or SyntaxError if a break does not fit the code any more; changes nothing."""
    for row in (BREAKS[name] for name in names):
        if "." in row.place:
            compile(_without(row, _module_source(row.place)), row.place, "exec")
        else:
            _without(row, _script(row.place))


def _without(row: Break, source: str) -> str:
    if source.count(row.text) != 1:
        raise ValueError(f"{row.text!r} occurs {source.count(row.text)} times in {row.place}")
    return source.replace(row.text, row.without)


def _script(name: str) -> str:
    return (files("tasks") / "scripts" / f"{name}.lua").read_text()


def _module_source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec and spec.loader else None  # type: ignore[attr-defined]
    if source is None:
        raise ValueError(f"{name} has no source")
    return str(source)


def broken_scripts(rows: Sequence[Break]) -> Callable[[str], str]:
    """The scripts of the store as `tasks.lua.source` gives them, without these guards."""
    bodies = {row.place: _script(row.place) for row in rows}
    broken = dict(bodies)
    for row in rows:
        broken[row.place] = _without(row, broken[row.place])
    original = lua.source

    def source(name: str) -> str:
        text = original(name)
        for place, body in bodies.items():
            text = text.replace(body, broken[place])
        return text

    return source


def _break_module(row: Break) -> None:
    """Import the module from its source without the guard; whoever imports it later gets this one."""
    spec = importlib.util.find_spec(row.place)
    assert spec is not None
    loaded = sys.modules.get(row.place)
    source = getattr(loaded, "__broken__", None) or _module_source(row.place)
    if loaded is not None and not hasattr(loaded, "__broken__"):
        raise ValueError(f"{row.place} was imported before its guard could be taken out")
    text = _without(row, source)
    module: Any = importlib.util.module_from_spec(spec)
    module.__broken__ = text
    sys.modules[row.place] = module
    exec(compile(text, str(spec.origin), "exec"), module.__dict__)
    package, _, name = row.place.rpartition(".")
    setattr(importlib.import_module(package), name, module)
