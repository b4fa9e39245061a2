"""When requests go out, and what they say. Pure and drawn from a seed: the same plan goes to every system.

An open-loop plan has a time for each request, whatever the server does meanwhile; a closed one keeps a number of them
in flight. Times are seconds from the start of the load.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Shot:
    """One request: its intended time, the class that it is reported under, and its JSON body."""

    at: float
    tag: str
    body: Body


@dataclass(frozen=True)
class Plan:
    """The shots of one load. With `concurrency` they go out as earlier ones end, for `seconds`; else at their times.

    `patience_s`: after so long a client gives up.
    """

    name: str
    shots: list[Shot]
    seconds: float
    concurrency: int = 0
    patience_s: float = 60.0


def poisson(rng: random.Random, rate: float, seconds: float) -> list[float]:
    """Times of independent arrivals, `rate` per second on average."""
    times: list[float] = []
    now = rng.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += rng.expovariate(rate)
    return times


def burst(rng: random.Random, count: int, within_s: float = 0.0, at: float = 0.0) -> list[float]:
    """Exactly `count` times, drawn evenly from `within_s` seconds: all at once where that is 0."""
    return sorted(at + rng.uniform(0.0, within_s) for _ in range(count))


def words(rng: random.Random, count: int) -> str:
    """A prompt of exactly `count` tokens of the random model; none comes twice, so no cache of prefixes helps."""
    return " ".join(f"w{rng.randrange(4096)}" for _ in range(count))


def chat(model: str, content: str, max_tokens: int, **extra: Any) -> Body:
    """A streamed, greedy chat request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


def closed_loop(concurrency: int, seconds: float, most: int, body: Callable[[], Body], patience_s: float) -> Plan:
    """`concurrency` clients, each asking again when it has its answer; `most` requests altogether."""
    shots = [Shot(0.0, "", body()) for _ in range(most)]
    return Plan(f"{concurrency} at a time", shots, seconds, concurrency, patience_s)


def open_loop(name: str, times: list[float], seconds: float, body: Callable[[], Body], patience_s: float) -> Plan:
    """One request at each of `times`."""
    return Plan(name, [Shot(at, "", body()) for at in times], seconds, 0, patience_s)
