"""Loads the Lua scripts: each is the generated tables, the prelude and its own body.

The tables (keys, transitions, the ticket) come from the Python that owns them, so nothing is typed twice.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from tasks import jobs, keys
from tasks.generate import ticket_template

NAMES = ("submit", "attach", "detach", "claim", "step", "renew", "release", "preempt", "cancel", "reap", "beat")


@cache
def source(name: str) -> str:
    """The whole text of one script."""
    folder = files("tasks") / "scripts"
    header = keys.lua_table() + jobs.lua_table() + f"local TICKET = [==[{ticket_template()}]==]\n"
    return header + (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
