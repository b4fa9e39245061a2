"""What is left of a tenant's rates of requests and tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """What is left of so many per minute."""

    limit: int
    left: int

    @property
    def reset_s(self) -> float:
        """Seconds until all of it is there again."""
        return (self.limit - self.left) * 60 / self.limit


@dataclass(frozen=True, slots=True)
class Rates:
    """A tenant's rates at one moment; None where it has none."""

    requests: Rate | None
    tokens: Rate | None
