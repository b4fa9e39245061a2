"""`docker compose up`, for real: the stack answers, survives the loss of each part, and ends in order.

The tests run in this order on one stack. Nothing here waits for a fixed time: each wait is for a thing, with a limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.compose.stack import ROOT, Stack

MODEL = "penstock-demo"
OURS = ("api", "worker", "flower")
STREAM_S = 180


def counting(start: int, end: int) -> str:
    """What the demo model answers to "Count from start to end."."""
    return ", ".join(str(number) for number in range(start, end + 1))


class Chat:
    """One streamed chat. Iterate over its pieces of text; then `reason` is why it ended and `job_id` whose it was."""

    def __init__(self, stack: Stack, prompt: str, store: bool = False) -> None:
        self._url = f"{stack.api_url}/v1/chat/completions"
        messages = [{"role": "user", "content": prompt}]
        self._body = {"model": MODEL, "messages": messages, "temperature": 0, "stream": True, "store": store}
        self.reason = self.job_id = ""

    def __iter__(self) -> Iterator[str]:
        done = False
        with httpx.stream("POST", self._url, json=self._body, timeout=STREAM_S) as answer:
            assert answer.status_code == 200, answer.read()
            self.job_id = answer.headers["x-penstock-job-id"]
            for line in answer.iter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    yield self._text(json.loads(line.removeprefix("data: ")))
        assert done, "the stream ended without [DONE]"

    def _text(self, chunk: dict[str, object]) -> str:
        assert "error" not in chunk, chunk
        choice = chunk["choices"][0]  # type: ignore[index]
        self.reason = choice["finish_reason"] or self.reason
        return choice["delta"].get("content") or ""


def wait_ready(stack: Stack) -> None:
    """Until every container is healthy and the API says that the model is served."""
    stack.wait_healthy("redis", *OURS)
    answer = httpx.get(f"{stack.api_url}/readyz", timeout=10)
    assert answer.status_code == 200, answer.text


def test_the_stack_becomes_healthy(stack: Stack) -> None:
    wait_ready(stack)


def test_a_chat_streams_through_it(stack: Stack) -> None:
    chat = Chat(stack, "Count from 3 to 40.")
    pieces = list(chat)
    assert "".join(pieces) == counting(3, 40)
    assert chat.reason == "stop"
    assert sum(bool(piece) for piece in pieces) > 5, "it came in one piece: it did not stream"


def test_the_api_image_holds_no_torch(stack: Stack) -> None:
    lack = "import importlib.util as u; print([name for name in ('torch', 'workers') if u.find_spec(name)])"
    assert stack.inside("api", "python", "-c", lack).strip() == "[]"
    stack.inside("api", "python", "-c", "import api.app")


def test_nothing_of_ours_runs_as_root(stack: Stack) -> None:
    assert {service: stack.inside(service, "id", "-un").strip() for service in OURS} == dict.fromkeys(OURS, "penstock")


def test_the_worker_can_keep_what_it_downloads(stack: Stack) -> None:
    stack.inside("worker", "sh", "-c", 'echo > "$HOME/.cache/huggingface/kept"')


def test_flower_answers(stack: Stack) -> None:
    page = httpx.get(f"{stack.flower_url}/workers", timeout=30, follow_redirects=True)
    assert page.status_code == 200
    assert "Flower" in page.text


def test_redis_keeps_what_it_was_told(stack: Stack) -> None:
    port = str(stack.redis_port)
    options = stack.inside("redis", "redis-cli", "-p", port, "config", "get", "*").splitlines()
    config = dict(zip(options[::2], options[1::2], strict=True))
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
    assert {name: config[name] for name in wanted} == wanted


def crash(stack: Stack) -> None:
    """The worker's processes die at once, as from a segfault or for want of memory: the restart policy must act."""
    stack.docker("exec", "--detach", stack.container("worker"), "python", "-c", "import os; os.kill(-1, 9)")


def kill_and_up(stack: Stack) -> None:
    """Docker takes `docker kill` for a wish and restarts nothing; `docker compose up` does."""
    stack.docker("kill", stack.container("worker"))
    stack.compose("up", "--detach", "--no-build")


@pytest.mark.parametrize("lose", [crash, kill_and_up])
def test_a_stream_goes_on_when_its_worker_is_killed(stack: Stack, lose: Callable[[Stack], None]) -> None:
    before = stack.inspect("worker")["State"]["StartedAt"]
    chat = Chat(stack, "Count from 1 to 180.", store=True)
    text = ""
    lost = False
    for piece in chat:
        text += piece
        if not lost and text.count(",") >= 20:
            lost = True
            assert text.count(",") < 150, "too late to be in mid-stream"
            lose(stack)
    assert text == counting(1, 180)
    assert chat.reason == "stop"
    assert stack.inspect("worker")["State"]["StartedAt"] > before, "the worker was never lost"
    job = httpx.get(f"{stack.api_url}/v1/jobs/{chat.job_id}", timeout=10).json()
    assert (job["state"], job["attempts"]) == ("succeeded", 2)
    wait_ready(stack)


def test_answers_outlive_redis(stack: Stack) -> None:
    chat = Chat(stack, "Count from 5 to 9.", store=True)
    assert "".join(chat) == counting(5, 9)
    stack.compose("restart", "redis")
    wait_ready(stack)
    stored = httpx.get(f"{stack.api_url}/v1/chat/completions/{chat.job_id}", timeout=10)
    assert stored.json()["choices"][0]["message"]["content"] == counting(5, 9)
    assert "".join(Chat(stack, "Count from 7 to 11.")) == counting(7, 11)


def test_a_stop_is_in_order(stack: Stack) -> None:
    stack.compose("stop", timeout=90)
    codes = {service: stack.inspect(service)["State"]["ExitCode"] for service in ("redis", *OURS)}
    assert codes["worker"] == 0, codes
    assert 137 not in codes.values(), f"had to be killed: {codes}"


def test_each_gpu_has_a_worker_of_its_own(stack: Stack) -> None:
    files = (ROOT / "compose.yaml", ROOT / "compose.gpu.yaml")
    services = yaml.safe_load(stack.compose("config", files=files))["services"]
    workers = {name: service for name, service in services.items() if name.startswith("worker-gpu")}
    cards = [service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for service in workers.values()]
    assert cards == [["0"], ["1"]]
    assert all(service["environment"]["PENSTOCK_GPUS"] == "0" for service in workers.values())
    assert "worker" not in services or services["worker"]["profiles"] == ["cpu"]
