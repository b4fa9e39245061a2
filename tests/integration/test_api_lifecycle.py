"""The API process: its errors at start, its end, a Redis that is down or comes back, and no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from tests.api_server import MODEL, ApiLine, ScriptedWorker
from tests.processes import ROOT, free_port, wait_until, write_fake_model

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def start_api(folder: Path, redis_url: str, port: int, **env: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    settings = {
        "PENSTOCK_REDIS_URL": redis_url,
        "PENSTOCK_MODELS": str(write_fake_model(folder)),
        "PENSTOCK_DATA_DIR": str(folder),
        "PENSTOCK_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "api"],
        cwd=ROOT,
        env=inherited | settings | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def api_process(folder: Path, redis_url: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start_api(folder, redis_url, port, **env)
    try:

        def healthy() -> bool:
            assert process.poll() is None, process.communicate()[0]
            try:
                return httpx.get(f"{url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(healthy, "the API", 30)
        yield url, process
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PENSTOCK_PROT": "1"}, "PENSTOCK_PROT"),
        ({"PENSTOCK_PORT": "x"}, "PENSTOCK_PORT"),
        ({"PENSTOCK_LOG_LEVEL": "LOUD"}, "PENSTOCK_LOG_LEVEL"),
        ({"PENSTOCK_MODELS": "nowhere.toml"}, "nowhere.toml"),
        ({"PENSTOCK_REDIS_URL": "", "REDIS_URL": ""}, "PENSTOCK_REDIS_URL"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path: Path, env: dict[str, str], words: str) -> None:
    process = start_api(tmp_path, "redis://127.0.0.1:1/0", free_port(), **env) if "PENSTOCK_PORT" not in env else None
    if process is None:
        process = start_api(tmp_path, "redis://127.0.0.1:1/0", 1, **env)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert words in output
    assert len(output.splitlines()) == 1


def test_a_taken_port_is_a_clear_error(tmp_path: Path, line: ApiLine) -> None:
    port = int(line.url.rpartition(":")[2])
    output, _ = (process := start_api(tmp_path, line.redis_url, port)).communicate(timeout=20)
    assert process.returncode == 2
    assert f"127.0.0.1:{port}" in output
    assert "in use" in output


def test_a_stop_ends_streams_with_a_word(tmp_path: Path, redis_url: str) -> None:
    worker = ScriptedWorker(redis_url).appear()
    with api_process(tmp_path, redis_url) as (url, process):
        job = httpx.post(f"{url}/v1/jobs", json=BODY).json()
        heard: dict[str, str] = {}

        def listen(name: str, method: str, path: str, **kwargs: object) -> None:
            heard[name] = httpx.request(method, url + path, timeout=20, **kwargs).text  # type: ignore[arg-type]

        asking = {
            "events": ("GET", f"/v1/jobs/{job['id']}/events", {}),
            "chat": ("POST", "/v1/chat/completions", {"json": BODY | {"stream": True}}),
            "whole": ("POST", "/v1/chat/completions", {"json": BODY}),
        }
        threads = [
            threading.Thread(target=listen, args=(name, method, path), kwargs=kwargs)
            for name, (method, path, kwargs) in asking.items()
        ]
        for thread in threads:
            thread.start()
        attempts = [worker.claim() for _ in range(3)]
        for attempt in attempts:
            attempt.say("half")
        with redis.Redis.from_url(redis_url) as client:
            wait_until(lambda: len(list(client.scan_iter("penstock:watch:*"))) == 3, "the watchers")
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - begun < 5
            for thread in threads:
                thread.join(10)
            assert "server_shutdown" in heard["chat"]
            assert heard["chat"].endswith("data: [DONE]\n\n")
            assert "retry: 1000\nevent: error\n" in heard["events"]
            assert "server_shutdown" in heard["whole"]
            assert client.zcard("penstock:orphans") == 2  # the chats wait for somebody to take them up again
        assert [attempt.say("on") for attempt in attempts] == ["ok"] * 3
    worker.close()


def test_no_torch_in_the_process(tmp_path: Path, redis_url: str) -> None:
    """Rendering a chat included: the API's image holds no torch."""
    code = (
        "import sys\n"
        "from tests.api_server import *\n"
        f"worker = ScriptedWorker({redis_url!r}).appear()\n"
        f"with serve(settings_of({redis_url!r})) as url, httpx.Client(base_url=url, timeout=20) as http:\n"
        f"    job = http.post('/v1/jobs', json={BODY!r})\n"
        "    assert job.status_code == 202, job.text\n"
        "assert 'transformers' in sys.modules\n"
        "assert not {'torch', 'workers.main'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_several_processes_serve_one_port(tmp_path: Path, redis_url: str) -> None:
    worker = ScriptedWorker(redis_url).appear()
    with api_process(tmp_path, redis_url, PENSTOCK_API_PROCESSES="2") as (url, process):
        with redis.Redis.from_url(redis_url) as client:
            wait_until(lambda: client.zcard("penstock:apis") == 2, "two processes", 20)
        for _ in range(8):
            assert httpx.post(f"{url}/v1/jobs", json=BODY).status_code == 202
        counted = 'penstock:prompt_tokens_total{model_name="fake"} 40.0'
        wait_until(lambda: counted in httpx.get(f"{url}/metrics").text, "the sum of both")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert not list(tmp_path.glob("metrics-*"))
    worker.close()
