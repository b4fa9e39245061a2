"""Builds one API process: its parts, its routes, and what runs beside the requests.

It starts without Redis and outlives its restarts: requests are refused with 503 meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from api import errors
from api.closing import Closing, end
from api.deps import Parts
from api.metrics import Metrics
from api.middleware import BodyLimit, RequestId
from api.pool import Pool
from api.prompts import template_renderer
from api.relay import Relay
from api.routes import chat, completions, health, jobs, models, page, workers
from tasks.catalog import Catalog
from tasks.connections import close_broken, connect_async, connect_subscriber
from tasks.errors import StoreDown
from tasks.settings import Settings, redis_url
from tasks.store import JobStore
from tasks.tenants import Tenants

log = logging.getLogger("penstock.api")

BEAT_S = 1.0
#: How long a process that stops waits for the jobs that it lets go of.
CLOSE_S = 1.0


def create_app(settings: Settings, catalog: Catalog, tenants: Tenants) -> FastAPI:
    """The application. Raises `BadConfig` if no Redis is configured."""
    url = redis_url(settings)
    app = FastAPI(
        title="Penstock",
        summary="Language models through a queue: every generation is a resumable job.",
        lifespan=partial(_lifespan, settings, catalog, tenants, url),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the redirect would lead to wherever the Host header says
    )
    errors.install(app)
    for module in (chat, completions, jobs, models, workers, health, page):
        app.include_router(module.router)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(RequestId)
    return app


@asynccontextmanager
async def _lifespan(
    settings: Settings, catalog: Catalog, tenants: Tenants, url: str, app: FastAPI
) -> AsyncIterator[None]:
    logging.getLogger("sse_starlette").setLevel(logging.INFO)  # its debug log would hold the answers
    await asyncio.to_thread(template_renderer)
    api = f"api-{secrets.token_hex(6)}"
    client = connect_async(url, "api")
    store = JobStore(client, settings)
    relay = Relay(store, lambda: connect_subscriber(url, "relay"), api, settings.orphan_s)
    pool = Pool(catalog, store)
    parts = Parts(settings, catalog, tenants, store, pool, relay, Metrics(pool), Closing())
    app.state.parts = parts
    beats = [
        asyncio.create_task(relay.run()),
        asyncio.create_task(_beat("reap", partial(store.reap, api))),
        asyncio.create_task(_beat("pool", partial(close_broken, client))),
        asyncio.create_task(_beat("refresh", pool.refresh)),
    ]
    try:
        with parts.closing.listening():
            yield
    finally:
        parts.closing.set()
        await relay.close(CLOSE_S)
        await end(*beats)
        await store.close()


async def _beat(name: str, call: Callable[[], Awaitable[object]]) -> None:
    """Every second until cancelled; says once when Redis goes away and once when it is back."""
    down = False
    while True:
        try:
            await call()
            if down:
                log.warning("%s: Redis is back", name)
            down = False
        except StoreDown as error:
            if not down:
                log.warning("%s: %s", name, error.message)
            down = True
        except Exception:
            log.exception("%s failed", name)
        await asyncio.sleep(BEAT_S)
