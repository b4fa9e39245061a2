"""Redis connections by role, each with its own pool and timeouts.

redis-py's defaults are wrong here: its pool raises at 100 connections, ten retries hide an outage for a minute, and a
retried write that is not idempotent runs twice. So: blocking pools, explicit timeouts, no automatic retry. Whoever may
repeat a call (a step, a renewal, a read) repeats it itself.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

TIMEOUT_S = 5.0


def _options(role: str, timeout: float | None) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "socket_connect_timeout": TIMEOUT_S,
        "socket_timeout": timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "client_name": f"penstock-{role}",
        # With these, pools hand out connections that were cut while they lay idle, and the next call fails.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def connect(url: str, role: str, connections: int = 4) -> redis.Redis:
    """A synchronous client, for workers and the command line."""
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        **_options(role, TIMEOUT_S),
    )
    return redis.Redis.from_pool(pool)  # so that closing the client closes its connections


def connect_async(url: str, role: str, connections: int = 32) -> redis.asyncio.Redis:
    """An asynchronous client for commands, for the API."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), 0),
        **_options(role, TIMEOUT_S),
    )
    return redis.asyncio.Redis.from_pool(pool)


def connect_subscriber(url: str, role: str) -> redis.asyncio.Redis:
    """An asynchronous client for one subscription: reads wait without limit, the health check finds dead peers."""
    return redis.asyncio.Redis.from_url(
        url, retry=AsyncRetry(NoBackoff(), 0), single_connection_client=False, **_options(role, None)
    )


async def close_broken(client: redis.asyncio.Redis) -> None:
    """Close the idle connections that the other end has closed.

    redis-py's pool looks only at the one that it hands out, so after a burst and an outage the others would stay open.
    """
    pool: Any = client.connection_pool
    for connection in list(pool._available_connections):
        reader = connection._reader
        if reader is not None and (reader.at_eof() or reader.exception() is not None):
            await connection.disconnect(nowait=True)
