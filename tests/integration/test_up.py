"""`penstock up` while it runs: what it starts, what it restarts, and how it ends. One supervisor for the whole file."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.up_rig import Up, alive, wait_for


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Running, with one worker of four lanes."""
    up = Up(tmp_path_factory.mktemp("up"))
    try:
        yield up.start()
    finally:
        up.stop()


def test_ready_says_what_runs_where(up: Up) -> None:
    assert up.get("/readyz")["status"] == "ready"
    assert f"API      {up.url}/v1" in up.output
    assert "Model    fake  (fake on cpu, 1 worker, 4 lanes)" in up.output
    assert f"curl -N {up.url}/v1/chat/completions" in up.output
    assert "died" not in up.output


def test_the_password_is_in_private_files_only(up: Up) -> None:
    for name in ("redis.url", "redis.conf", "appendonly.aof"):
        found = next(path for path in up.data.rglob(f"{name}*") if path.is_file())
        assert found.stat().st_mode & 0o777 == 0o600, found
    password = (up.data / "redis.url").read_text().split(":")[2].partition("@")[0]
    assert len(password) >= 24
    for pid, line in up.children().items():
        assert password not in line
        assert password.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    for log in (up.data / "logs").iterdir():
        assert password not in log.read_text(), log


def test_redis_keeps_everything_it_is_given(up: Up) -> None:
    with redis.Redis.from_url((up.data / "redis.url").read_text().strip(), decode_responses=True) as client:
        kept = {
            name: client.config_get(name)[name] for name in ("maxmemory-policy", "appendonly", "appendfsync", "save")
        }
    assert kept == {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "save": ""}


def test_a_second_supervisor_is_refused(up: Up) -> None:
    done = up.cli("up", "--no-flower", "--port", "0", "--models", str(up.folder / "models.toml"))
    assert done.exit_code == 2
    assert f"another `penstock up` (pid {up.process.pid}) uses {up.data}" in done.stderr
    assert up.get("/readyz")


def test_the_commands(up: Up) -> None:
    assert up.cli("submit", "Count from 3 to 6.", "--wait").stdout == "3, 4, 5, 6\n"
    job = up.cli("submit", "[step_ms=50][tokens=2000]", "--priority", "batch").stdout.strip()
    assert job in up.cli("jobs").stdout
    assert up.cli("cancel", job).stdout.startswith(f"{job}: ")
    wait_for(lambda: up.get(f"/v1/jobs/{job}")["state"] == "cancelled", "the cancelled job")
    again = up.cli("cancel", "job_" + "a" * 24)
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    model, waiting, _, lanes, workers, _ = up.cli("status").stdout.splitlines()[1].split()
    assert (model, waiting, lanes, workers) == ("fake", "0", "4", "1")
    assert " ready " in up.cli("workers").stdout


def test_a_killed_worker_is_restarted_and_its_job_goes_on(up: Up) -> None:
    job = up.submit("[step_ms=20]Count from 1 to 60.")
    wait_for(lambda: up.get(f"/v1/jobs/{job}")["output_text"], "its first tokens")
    killed = up.pid_of("workers.main")
    os.kill(killed, signal.SIGKILL)
    assert up.result(job) == ", ".join(map(str, range(1, 61)))
    assert up.get(f"/v1/jobs/{job}")["attempts"] == 2
    assert up.pid_of("workers.main") != killed
    assert "worker fake #0 died (killed by SIGKILL) and starts again in 0.5 s; its log: " in up.output


def test_a_killed_api_is_restarted_and_a_chat_goes_on(up: Up) -> None:
    with up.chat() as chat:
        chat.say("[step_ms=20]Count from 1 to 60.")
        chat.expect("2, 3")
        killed = up.pid_of("-m api")
        os.kill(killed, signal.SIGKILL)
        chat.expect("59, 60")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s*[^\x00-\x7f] The connection broke[^\r\n]*|[\r\n]", "", chat.output)
    assert ", ".join(map(str, range(1, 61))) in text
    assert up.pid_of("-m api") != killed
    assert "the API died (killed by SIGKILL)" in up.output


def test_ctrl_c_in_a_chat_stops_the_answer_only(up: Up) -> None:
    with up.chat() as chat:
        chat.say("[step_ms=40][tokens=2000]")
        wait_for(lambda: up.get("/v1/workers")["data"][0]["running"], "a running answer")
        chat.key("\x03")
        chat.expect("[stopped]")
        chat.say("Count from 7 to 9.")
        chat.expect("7, 8, 9")
        wait_for(lambda: not up.get("/v1/workers")["data"][0]["running"], "a free lane")
        chat.say("/exit")
        assert chat.process.wait(5) == 0


def test_a_killed_redis_is_restarted_with_its_jobs(up: Up) -> None:
    job = up.submit("[step_ms=20]Count from 1 to 60.")
    os.kill(up.pid_of("redis-server"), signal.SIGKILL)
    assert up.result(job) == ", ".join(map(str, range(1, 61)))
    assert "Redis died (killed by SIGKILL)" in up.output


def test_ctrl_c_drains(up: Up) -> None:
    """The last of this file: it ends the supervisor."""
    job = up.submit("[step_ms=100][tokens=2000]")
    wait_for(lambda: up.get(f"/v1/jobs/{job}")["state"] == "running", "a running job")
    children = list(up.children())
    began = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(15) == 0
    assert time.monotonic() - began < 10
    assert "Stopped. What was not finished goes on" in up.output
    assert "killed\n" not in up.output
    assert not any(alive(pid) for pid in children)
    assert not (up.data / "redis.url").exists()
    assert "drained: 1 jobs given back" in (up.data / "logs" / "worker-fake-0.log").read_text()
