"""The whole pool as a user starts it: `penstock up` with the shipped models.toml, on free ports and a data dir of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.processes import free_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pool:
    """A running pool."""

    url: str
    flower: str
    data: Path
    process: subprocess.Popen[bytes]

    def sdk(self, **options: object) -> openai.OpenAI:
        """The unmodified OpenAI SDK, pointed at the pool."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Up until the end of the session; stopped by its own pid."""
    data, port, flower = tmp_path_factory.mktemp("pool"), free_port(), free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "REDIS_"))}
    environ |= {
        "PENSTOCK_PORT": str(port),
        "PENSTOCK_FLOWER_PORT": str(flower),
        "PENSTOCK_DATA_DIR": str(data),
        "PENSTOCK_LEASE_S": "2",
    }
    with (data / "up.out").open("wb") as out:
        command = [str(Path(sys.executable).parent / "penstock"), "up"]
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT)
    running = Pool(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{flower}", data, process)
    try:
        wait_ready(running)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def wait_ready(pool: Pool, limit_s: float = 90) -> None:
    """Until /readyz answers 200; raises with the pool's output when it does not."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and pool.process.poll() is None:
        try:
            if httpx.get(f"{pool.url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the pool is not ready:\n{(pool.data / 'up.out').read_text(errors='replace')[-4000:]}")
