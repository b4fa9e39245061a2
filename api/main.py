"""The application as servers import it: `uvicorn api.main:app`. Built on first access, from the environment."""

from __future__ import annotations

import logging
from typing import Any

from api.app import create_app
from tasks.catalog import load_catalog
from tasks.settings import load_settings
from tasks.tenants import load_tenants


def __getattr__(name: str) -> Any:
    """`app`, built when it is asked for: importing this module must not read settings."""
    if name != "app":
        raise AttributeError(name)
    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return create_app(settings, load_catalog(settings.models), load_tenants(settings.tenants))
