"""Settings that both sides of the queue share, read once from the environment and frozen.

Every setting is a variable `PENSTOCK_…`; one that is not known is refused by name, so a typo cannot be silent.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from tasks.errors import BadConfig

PREFIX = "PENSTOCK_"
#: Ten years. Redis refuses expiries far beyond, half-way through a script.
LONGEST_S = 10 * 365 * 86400


class Settings(BaseSettings):
    """All settings of all processes; each description is the documentation."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address that the API and Flower listen on")
    port: int = Field(8000, ge=0, le=65535, description="port of the API and the web page")
    flower_port: int = Field(5555, ge=0, le=65535, description="port of Flower")
    redis_port: int = Field(0, ge=0, le=65535, description="port of the embedded Redis; 0: a free one")
    appendfsync: Literal["everysec", "always"] = Field(
        "everysec", description="how the embedded Redis syncs its file: everysec, or always (a power cut takes nothing)"
    )
    redis_url: str = Field("", description="an existing Redis (then REDIS_URL, then the data dir's redis.url)")
    data_dir: Path = Field(Path(".penstock"), description="Redis' files, logs and redis.url")
    models: Path = Field(Path("models.toml"), description="what is served")
    tenants: str = Field("", description="a tenants.toml: who asks, and within which limits; empty: all are one tenant")
    model: str = Field("", description="a worker: the entry of models.toml that it serves")
    gpus: str = Field("", description="a worker: its GPUs, as in 0,1; empty: the entry's")
    threads: int = Field(0, ge=0, description="a worker on CPU: torch threads; 0: cores / workers on this machine")
    api_processes: int = Field(1, ge=1, le=64, description="API processes behind the port")
    lease_s: float = Field(5.0, gt=0.2, description="a job whose worker is silent this long goes to another")
    ageing_s: float = Field(
        60.0, gt=0, description="waited longer than this, a job gets a lane before more urgent ones"
    )
    step_timeout_s: float = Field(30.0, gt=0, description="a step that takes longer counts as hung")
    orphan_s: float = Field(30.0, ge=0, description="how long a stream's job outlives an API process that died")
    retention_s: int = Field(
        86400, ge=1, le=LONGEST_S, description="how long finished jobs and stored answers are kept"
    )
    retention_stream_s: int = Field(600, ge=1, le=LONGEST_S, description="how long other finished answers are kept")
    max_strikes: int = Field(3, ge=1, description="deaths while alone that make a job poison")
    max_losses: int = Field(20, ge=1, description="lost leases after which a job fails")
    max_body_bytes: int = Field(4_000_000, ge=1024, description="larger request bodies are refused")
    keepalive_s: float = Field(10.0, gt=0, le=15, description="longest silence on an SSE stream")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with `overrides` on top. Raises `BadConfig` naming the variable."""
    _refuse_unknown(os.environ)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper() if first["loc"] else PREFIX
        raise BadConfig(f"{name}: {first['msg']} (got {first.get('input')!r})", param=name) from None


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [name.upper() for name in Settings.model_fields]
    for name in environ:
        prefix, setting = name[: len(PREFIX)].upper(), name[len(PREFIX) :].upper()  # pydantic reads either case
        if prefix == PREFIX and setting not in known:
            close = difflib.get_close_matches(setting, known, n=1)
            hint = f" Did you mean {PREFIX}{close[0]}?" if close else " See docs/settings.md."
            raise BadConfig(f"{name} is not a setting of Penstock.{hint}", param=name)


def redis_url(settings: Settings) -> str:
    """PENSTOCK_REDIS_URL, then REDIS_URL, then the URL that `penstock up` wrote. Raises `BadConfig` if there is none."""
    written = settings.data_dir / "redis.url"
    url = settings.redis_url or os.environ.get("REDIS_URL", "")
    if not url and written.is_file():
        url = written.read_text().strip()
    if not url:
        raise BadConfig(f"no Redis: set PENSTOCK_REDIS_URL, or run `penstock up` (which writes {written})")
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # its text may show a part of the password
        text = "PENSTOCK_REDIS_URL or REDIS_URL: no URL of a Redis, which looks like redis://:password@127.0.0.1:6379/0"
        raise BadConfig(text, param="PENSTOCK_REDIS_URL") from None
    return url
