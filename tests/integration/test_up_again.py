"""`penstock up` after a SIGKILL: no process is left, and the next one goes on with the jobs. In this order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.up_rig import Up, alive, wait_for

#: One lane, so that the second job has to wait, and a model that cannot load.
MODELS = """
[[model]]
name = "fake"
engine = "fake"
max_num_seqs = 1

[[model]]
name = "broken"
path = "org/model"
engine = "no-such-engine"
"""
COUNT = ", ".join(map(str, range(1, 81)))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("again"), MODELS)
    try:
        yield up.start()
    finally:
        up.stop()


def test_a_model_that_does_not_load_leaves_the_rest_serving(up: Up) -> None:
    assert "Model broken does not serve: " in up.output
    assert "no-such-engine" in up.output
    assert "Penstock runs in part" in up.output
    assert "Model    broken  (does not serve)" in up.output
    assert up.result(up.submit("Count from 1 to 80.")) == COUNT


def test_sigkill_takes_the_children_along_and_the_next_goes_on(up: Up) -> None:
    running = up.submit("[step_ms=20]Count from 1 to 80.")
    queued = up.submit("Count from 1 to 80.")
    wait_for(lambda: up.get(f"/v1/jobs/{running}")["output_text"], "its first tokens")
    children = up.children()
    assert any("redis-server" in line for line in children.values())
    up.process.kill()
    up.process.wait(5)
    began = time.monotonic()
    wait_for(lambda: not any(alive(pid) for pid in children), "the end of the children", 5)
    assert time.monotonic() - began < 2
    up.start()
    assert up.result(running) == COUNT
    assert up.result(queued) == COUNT
    assert up.get(f"/v1/jobs/{running}")["attempts"] == 2


def test_a_second_ctrl_c_kills(up: Up) -> None:
    """The last of this file: it ends the supervisor."""
    children = list(up.children())
    os.kill(up.pid_of("workers.main"), signal.SIGSTOP)  # a worker that cannot drain
    up.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Draining" in up.output, "the drain")
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(5) == 0
    wait_for(lambda: not any(alive(pid) for pid in children), "the end of the children", 3)
