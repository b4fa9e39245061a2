"""Who asks: tenants, each with its weight, its most urgent band and its limits. Read from tenants.toml, checked by name.

A request belongs to the tenant whose API key it carries (`Authorization: Bearer ...`), every other to `default`. Keys
say whose a request is, not whether it may come in. Only their SHA-256 stands in the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tasks.errors import BadConfig
from tasks.jobs import BANDS, Priority
from tasks.rates import Rate, Rates
from tasks.tables import read_rows

DEFAULT = "default"


class Tenant(BaseModel):
    """One `[[tenant]]` of tenants.toml; descriptions are the documentation. A limit of 0 is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="its name; `default`: everybody else")
    key_sha256: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        [], description="SHA-256 of each of its API keys, in hex: `printf %s KEY | sha256sum`"
    )
    weight: float = Field(1.0, ge=0.01, le=100, description="its part of the lanes while others wait, beside theirs")
    max_priority: Priority = Field("interactive", description="the most urgent band that it may ask for")
    max_running: int = Field(0, ge=0, description="its jobs of one model that run at a time; more of them wait")
    max_waiting: int = Field(0, ge=0, description="its jobs of one model in line; more are refused with 429")
    requests_per_minute: int = Field(0, ge=0, description="more are refused with 429, after a burst of as many")
    tokens_per_minute: int = Field(0, ge=0, description="the same for prompts and answers together")

    def may(self, priority: Priority) -> bool:
        """True if it may ask for this band."""
        return BANDS[priority] >= BANDS[self.max_priority]

    def rates(self, requests_left: int, tokens_left: int) -> Rates | None:
        """What is left of its rates; None if it has none."""
        pairs = (self.requests_per_minute, requests_left), (self.tokens_per_minute, tokens_left)
        requests, tokens = (Rate(limit, max(0, left)) if limit else None for limit, left in pairs)
        return Rates(requests, tokens) if requests or tokens else None


#: Whoever has no key, where nothing else is said.
EVERYBODY = Tenant(name=DEFAULT)  # type: ignore[call-arg]


class Tenants:
    """All tenants. Look-ups by API key."""

    def __init__(self, rows: list[Tenant]) -> None:
        self._by_key = {digest: row for row in rows for digest in row.key_sha256}
        self._default = next((row for row in rows if row.name == DEFAULT), EVERYBODY)
        names = [row.name for row in rows]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadConfig(
                f"tenant name {twice!r} is used twice: every [[tenant]] needs a name of its own", param="name"
            )
        if len(self._by_key) < sum(len(row.key_sha256) for row in rows):
            raise BadConfig("the same key_sha256 stands at two tenants: a key belongs to one", param="key_sha256")

    def of(self, authorization: str) -> Tenant:
        """The tenant of an Authorization header."""
        scheme, _, key = authorization.partition(" ")
        if not self._by_key or scheme.lower() != "bearer":
            return self._default
        return self._by_key.get(hashlib.sha256(key.strip().encode()).hexdigest(), self._default)


def load_tenants(path: str) -> Tenants:
    """Read and check a tenants.toml; "" is everybody. Raises `BadConfig` naming the file, the key and the remedy."""
    if not path:
        return Tenants([])
    try:
        return Tenants([row for _, row in read_rows(Path(path), "tenant", Tenant, "PENSTOCK_TENANTS")])
    except BadConfig as error:
        message = error.message if path in error.message else f"{path}: {error.message}"
        raise BadConfig(message, param=error.param) from None
