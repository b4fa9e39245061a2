"""`penstock up` with a step that hangs, and with a Redis that writes everything to disk before it answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.integration.up_rig import Up, wait_for

COUNT = ", ".join(map(str, range(1, 61)))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    up = Up(folder, PENSTOCK_STEP_TIMEOUT_S="1", PENSTOCK_APPENDFSYNC="always")
    try:
        yield up.start()
    finally:
        up.stop()


def test_a_hung_worker_is_restarted_and_its_neighbours_go_on(up: Up) -> None:
    innocent = up.submit("[step_ms=20]Count from 1 to 60.")
    wait_for(lambda: up.get(f"/v1/jobs/{innocent}")["output_text"], "its first tokens")
    hung = up.pid_of("workers.main")
    hanging = up.submit("[tokens=50][hang_at=6]")
    wait_for(lambda: "worker fake #0 died (exit code 5) and starts again" in up.output, "the end of the hung worker")
    assert up.cli("cancel", hanging).exit_code == 0
    assert up.result(innocent) == COUNT
    assert up.get(f"/v1/jobs/{innocent}")["attempts"] == 2
    assert up.pid_of("workers.main") != hung
    wait_for(lambda: up.get(f"/v1/jobs/{hanging}")["state"] == "cancelled", "the end of the job that hung")


def test_appendfsync_is_a_setting(up: Up) -> None:
    with redis.Redis.from_url((up.data / "redis.url").read_text().strip(), decode_responses=True) as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
