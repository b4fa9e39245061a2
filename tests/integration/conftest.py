"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.api_server import ApiLine, api_line
from tests.integration.protocol_rig import Rig


@pytest.fixture
def rigs(redis_url: str) -> Iterator[Callable[..., Rig]]:
    """Makes worlds on an empty Redis; arguments are settings."""
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(redis_url, **settings))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    """An empty Redis with one API process and one worker process, all settings at their defaults."""
    return rigs()


@pytest.fixture
def line(redis_url: str) -> Iterator[ApiLine]:
    """A running API with a scripted worker, on an empty Redis; it is never silent for long."""
    with api_line(redis_url, keepalive_s=0.4) as made:
        yield made
