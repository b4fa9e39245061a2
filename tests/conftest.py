"""Fixtures that every test may use: a real Redis of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.own_redis import own_redis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis that this test session started; never one that someone else uses."""
    with own_redis(tmp_path_factory.mktemp("session"), "--appendonly", "no") as server:
        yield server.url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The session's Redis, emptied."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server
