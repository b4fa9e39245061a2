"""Loads the Lua scripts: each is the generated tables, what all have in common, and its own body.

The tables (keys, transitions, the ticket) come from the Python that owns them, so nothing is typed twice.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from tasks import jobs, keys
from tasks.generate import ticket_template

NAMES = (
    "submit",
    "attach",
    "detach",
    "claim",
    "step",
    "renew",
    "release",
    "preempt",
    "cancel",
    "reap",
    "beat",
    "where",
)

#: Put before each of them: records and the clock, the order in line, how jobs end and change owners.
COMMON = ("prelude", "line", "ends")


@cache
def source(name: str) -> str:
    """The whole text of one script."""
    folder = files("tasks") / "scripts"
    header = keys.lua_table() + jobs.lua_table() + f"local ASSUMED = {jobs.ASSUMED}\n"
    header += f"local TICKET = [==[{ticket_template()}]==]\n"
    return header + "".join((folder / f"{part}.lua").read_text() for part in (*COMMON, name))
