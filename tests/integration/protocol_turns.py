"""What can happen next in a random history, how often, and how many histories there are.

HYPOTHESIS_PROFILE=thorough runs many more and longer histories, with fresh seeds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PROFILE = settings(
    max_examples=500 if THOROUGH else 40,
    stateful_step_count=80 if THOROUGH else 50,
    derandomize=not THOROUGH,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
APIS, WORKERS = ("a1", "a2"), ("w1", "w2", "w3")
#: How often each kind of turn is taken, relative to the others. Hypothesis prefers the first ones.
WAYS = {
    **{"work": 12, "again": 6, "claim": 6, "renew": 4, "due": 6, "release": 2, "preempt": 2},
    **{"submit": 2, "read": 2, "resume": 2, "poll": 1, "leave": 1, "cancel": 1},
    **{"reap": 2, "outage": 1, "tickets": 2, "drain": 1, "save": 1, "lose_writes": 1, "die": 1},
}
T = TypeVar("T")


class Turn(NamedTuple):
    """The choices within a turn."""

    number: int
    flag: bool
    api: str
    tokens: int
    end: str


turns = st.builds(
    Turn,
    st.integers(0, 11),
    st.booleans(),
    st.sampled_from(APIS),
    st.integers(0, 3),
    st.sampled_from(("",) * 7 + ("succeeded", "failed", "cancelled")),
)


ways = st.sampled_from([way for way, often in WAYS.items() for _ in range(often)])


def at(items: Sequence[T], number: int) -> T:
    """One of the items, the newest first, so that a small number means the most likely one."""
    return items[-1 - number % len(items)]
