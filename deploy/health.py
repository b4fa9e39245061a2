"""The containers' health checks: exit 0 if well, else 1 with one line that says why.

    health.py http <url>     the page answers 200
    health.py worker         this container's worker shows itself in Redis, and its model is loaded

A running process proves little: a worker is well when its heartbeat, a card that lives for seconds, is in Redis.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.profile import WorkerCard

TIMEOUT_S = 4.0


def http_fault(url: str) -> str | None:
    """What is wrong with the page, or None."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"{url}: status {answer.status}"
    except (urllib.error.URLError, OSError) as error:
        return f"{url}: {error}"


def worker_fault() -> str | None:
    """What is wrong with the worker on this host, or None."""
    # here, because Flower's and the API's checks need nothing of it and run every few seconds
    from tasks.connections import connect_async
    from tasks.settings import load_settings, redis_url
    from tasks.store import JobStore

    settings = load_settings()

    async def read() -> list[WorkerCard]:
        store = JobStore(connect_async(redis_url(settings), "health", connections=1), settings)
        try:
            return await store.workers()
        finally:
            await store.close()

    cards = [card for card in asyncio.run(read()) if card.host == platform.node() and card.model == settings.model]
    if not cards:
        return f"no worker for {settings.model!r} on {platform.node()} has shown itself for seconds"
    card = max(cards, key=lambda each: each.heartbeat)
    return None if card.state in ("ready", "draining") else f"{card.name}: {card.state} {card.error or ''}"


def main(arguments: list[str]) -> int:
    """Run the check that is named."""
    match arguments:
        case ["http", url]:
            fault = http_fault(url)
        case ["worker"]:
            fault = worker_fault()
        case _:
            fault = "usage: health.py http <url> | worker"
    if fault:
        sys.stderr.write(fault + "\n")
    return 1 if fault else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
