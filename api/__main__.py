"""The API's process: `python -m api`. Reads the settings, says clearly what is wrong with them, serves until SIGTERM.

Exit codes: 0 after a stop, 2 for wrong settings or a port that is taken.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from tasks.catalog import load_catalog
from tasks.errors import BadConfig
from tasks.settings import Settings, load_settings, redis_url
from tasks.tenants import load_tenants

#: Streams end within a second of the signal; this bounds what does not.
GRACE_S = 4


def main() -> int:
    """Serve. Returns the exit code."""
    try:
        settings = load_settings()
        catalog = load_catalog(settings.models)
        load_tenants(settings.tenants)
        redis_url(settings)
        port = _bind(settings)
    except BadConfig as error:
        sys.stderr.write(f"penstock: {error.message}\n")
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("penstock.api").info("serves %s on %s", ", ".join(catalog.entries), _url(port))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)  # the server raises the signal again once it has stopped
    _allow_many_connections()
    folder = _share_metrics(settings, port)
    try:
        _serve(settings, port)
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _stopped(number: int, stack: FrameType | None) -> None:
    raise SystemExit(0)


def _serve(settings: Settings, port: socket.socket) -> None:
    config = uvicorn.Config(
        "api.main:app",
        workers=settings.api_processes,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    if settings.api_processes > 1:
        from uvicorn.supervisors import Multiprocess

        Multiprocess(config, sockets=[port]).run()
    else:
        uvicorn.Server(config).run(sockets=[port])


def _bind(settings: Settings) -> socket.socket:
    """Our own socket, so that a port that is taken is a clear error before anything starts."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    port = socket.socket(family=family)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        port.bind((settings.host, settings.port))
    except OSError as error:
        port.close()
        text = f"PENSTOCK_PORT: cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"
        raise BadConfig(text, param="PENSTOCK_PORT") from None
    port.set_inheritable(True)
    return port


def _allow_many_connections() -> None:
    """Every stream is an open file, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _url(port: socket.socket) -> str:
    host, number = port.getsockname()[:2]
    return f"http://{host}:{number}"


def _share_metrics(settings: Settings, port: socket.socket) -> Path | None:
    """Several processes count into one folder. The variable must be set before prometheus_client is imported."""
    if settings.api_processes == 1:
        return None
    folder = settings.data_dir / f"metrics-{port.getsockname()[1]}"
    shutil.rmtree(folder, ignore_errors=True)  # one that was killed leaves its counts
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
