"""The tenant's rates as headers, by OpenAI's names: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`."""

from __future__ import annotations

from tasks.rates import Rates


def rate_headers(rates: Rates | None) -> dict[str, str]:
    """Six headers at most: only rates that are limited have any."""
    headers: dict[str, str] = {}
    for name, rate in (("requests", rates and rates.requests), ("tokens", rates and rates.tokens)):
        if rate:
            headers[f"x-ratelimit-limit-{name}"] = str(rate.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(rate.left)
            headers[f"x-ratelimit-reset-{name}"] = _duration(rate.reset_s)
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 250ms, 12s, 6m0s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
