"""How workers come back to a broker that was away."""

from __future__ import annotations

import pytest
from kombu.exceptions import OperationalError

from tasks.app import create_app
from tasks.settings import Settings
from tests.processes import free_port


def test_a_broker_that_is_away_is_asked_again_every_second() -> None:
    """Kombu's own waits grow to half a minute, and lanes would stay empty beside a Redis that is back."""
    app = create_app(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    waits: list[float] = []
    with pytest.raises(OperationalError):
        app.connection_for_read().ensure_connection(lambda error, wait: waits.append(wait), max_retries=3)
    assert len(waits) >= 3
    assert 0 < max(waits) <= 1.0
