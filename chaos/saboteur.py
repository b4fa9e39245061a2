"""Runs a real worker or API in this process, with hooks that obey the storm and without the guards that were taken out.

    python -m chaos.saboteur <folder> celery -A workers.main worker
    python -m chaos.saboteur <folder> api
    python -m chaos.saboteur <folder> penstock up

An order is a file `<folder>/<pid>/<order>`; the hook that obeys it renames it in the same moment, so it is obeyed once,
or withdrawn and never obeyed. The hooks stand where a crash or a broken driver would strike: at the call of the ledger,
and in the forward of the engine's backend. Production code has no failpoints and does not know of this.

    die-before-claim   SIGKILL after the ticket was popped, before the job is claimed
    raise              the next forward raises instead of running
    oom                the next forward runs, and its tokens are lost with a MemoryError
    hang, slow         the next forward begins so many seconds late (the text of the order)

CHAOS_SKEW_S sets the clock of this process forward; CHAOS_BREAK names the guards to take out (see `chaos.breaks`). Of
`penstock up` it is the parts that lack them.
"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORWARD = ("raise", "oom", "hang", "slow")


class Orders:
    """The orders for one process; the storm gives them, the hooks take them."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder = folder / str(pid)

    def give(self, name: str, text: str = "") -> None:
        """Have the process do this at the next occasion."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(name, "done").unlink(missing_ok=True)
        draft = self._path(name, "new")
        draft.write_text(text)
        draft.rename(self._path(name))

    def obeyed(self, name: str) -> bool:
        """The process has begun to do it."""
        return self._path(name, "done").exists()

    def withdraw(self, name: str) -> bool:
        """Take the order back. False: it is being obeyed already."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def take(self, name: str) -> str | None:
        """For the hooks: the order's text, once; None if there is no such order."""
        done = self._path(name, "done")
        try:
            self._path(name).rename(done)
        except FileNotFoundError:
            return None
        return done.read_text()

    def _path(self, name: str, suffix: str = "order") -> Path:
        return self._folder / f"{name}.{suffix}"


class SabotagedBackend:
    """Stands before an engine's backend and spoils forwards as ordered; all else goes through."""

    def __init__(self, backend: Any, engine: Any, orders: Orders) -> None:
        self._backend = backend
        self._engine = engine
        self._orders = orders

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self) -> Any:
        """A forward of the backend, or what was ordered instead."""
        orders = self._orders
        for name in ("hang", "slow"):
            if (text := orders.take(name)) is not None:
                time.sleep(float(text))
        if self._engine._recovery.alone is not None:  # a failure now would rightly be blamed on an innocent sequence
            return self._backend.forward()
        if orders.take("raise") is not None:
            raise RuntimeError("the saboteur made this step fail")
        made = self._backend.forward()
        if made and orders.take("oom") is not None:
            raise MemoryError("the saboteur let this step run out of memory")
        return made


def hook_engine(orders: Orders) -> None:
    """Every engine that is built from now on has a spoiled backend."""
    from workers.engine.batching import BatchingEngine

    engine: Any = BatchingEngine
    original = engine.__init__

    def init(self: Any, backend: Any, *args: Any, **kwargs: Any) -> None:
        original(self, SabotagedBackend(backend, self, orders), *args, **kwargs)

    engine.__init__ = init


def hook_ledger(orders: Orders) -> None:
    """A claim can be the last thing that this process tries."""
    from tasks.ledger import JobLedger

    ledger: Any = JobLedger
    original = ledger.claim

    def claim(self: Any, *args: Any, **options: Any) -> Any:
        if orders.take("die-before-claim") is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **options)

    ledger.claim = claim


def skew_clock(seconds: float) -> None:
    """This process lives in the future; what counts intervals is not touched."""
    now, now_ns = time.time, time.time_ns
    clock: Any = time
    clock.time = lambda: now() + seconds
    clock.time_ns = lambda: now_ns() + int(seconds * 1e9)


PYTHON = """\
#!/bin/sh
case "$1 $2" in
  "-m celery" | "-m api") shift; exec {python} -m chaos.saboteur {folder} "$@" ;;
esac
exec {python} "$@"
"""


def supervise(folder: Path, args: Sequence[str]) -> None:
    """Be `penstock`, whose parts are started by a Python that puts the saboteur in."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable), folder=shlex.quote(str(folder))))
    python.chmod(0o700)
    sys.executable = str(python)
    sys.argv = ["penstock", *args]
    from cli.main import app

    app()


def main(argv: Sequence[str]) -> None:
    """Prepare this process, then become the program."""
    folder, program, *args = argv
    if program == "penstock":
        supervise(Path(folder), args)
        return
    skew = float(os.environ.pop("CHAOS_SKEW_S", "0"))
    broken = os.environ.pop("CHAOS_BREAK", "")
    if skew:
        skew_clock(skew)
    if broken:
        from chaos import breaks

        breaks.take_out(broken.split(","), program)
    if program == "celery":
        orders = Orders(Path(folder), os.getpid())
        hook_ledger(orders)
        hook_engine(orders)
    sys.argv = [program, *args]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
