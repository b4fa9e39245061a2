"""Structured output over the whole line: the SDK, the API, Redis and workers with the demo model, one killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tasks.catalog import load_catalog
from tests.api_server import serve, settings_of
from tests.contract.engines import DEMO
from tests.processes import WorkerProcess, start_worker

pytestmark = pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")

ENTRY = '[[model]]\nname = "demo"\npath = "{path}"\nengine = "transformers"\ndevice = "cpu"\nmax_num_seqs = 4\n'
ASK: Any = [{"role": "user", "content": "Count from 1 to 40."}]
TERM = {"PENSTOCK_LEASE_S": "1"}


class Row(BaseModel):
    kind: Literal["even", "odd"]
    first: Literal[1, 2, 3]
    next: Literal["no", "yes"] | None


@pytest.fixture
def workers(tmp_path: Path, redis_url: str) -> Iterator[list[WorkerProcess]]:
    (tmp_path / "models.toml").write_text(ENTRY.format(path=DEMO))
    made = [start_worker(tmp_path, redis_url, tmp_path / "models.toml", TERM, model="demo")]
    made[0].wait_ready(90)
    yield made
    for worker in made:
        worker.stop()


@pytest.fixture
def sdk(tmp_path: Path, redis_url: str, workers: list[WorkerProcess]) -> Iterator[openai.OpenAI]:
    entries = load_catalog(tmp_path / "models.toml").entries.values()
    with (
        serve(settings_of(redis_url, lease_s=1), *entries) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=90) as made,
    ):
        yield made


def test_the_sdk_gets_the_class_that_it_asked_for(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.parse(model="demo", messages=ASK, response_format=Row, max_tokens=200, seed=1)
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Row)
    with pytest.raises(openai.BadRequestError, match="unclosed") as caught:
        sdk.chat.completions.create(model="demo", messages=ASK, extra_body={"regex": "("})
    assert caught.value.param == "regex"
    late: Any = {"grammar": "start: <|nobody|>"}  # only the engine knows the model's special tokens
    with pytest.raises(openai.BadRequestError, match="nobody"):
        sdk.chat.completions.create(model="demo", messages=ASK, extra_body=late)


def test_an_answer_goes_on_in_its_grammar_when_its_worker_is_killed(
    sdk: openai.OpenAI, workers: list[WorkerProcess], tmp_path: Path, redis_url: str
) -> None:
    schema = {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 60, "maxItems": 60}
    form: Any = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": schema}}
    asked: dict[str, Any] = {"model": "demo", "messages": ASK, "response_format": form, "seed": 5, "max_tokens": 900}
    whole = sdk.chat.completions.create(**asked).choices[0].message.content
    assert whole is not None
    assert len(json.loads(whole)) == 60
    text = ""
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        if len(text) > 100 and len(workers) == 1:
            workers[0].signal(signal.SIGKILL)
            workers.append(start_worker(tmp_path, redis_url, tmp_path / "models.toml", TERM, model="demo"))
    assert text == whole
    assert len(workers) == 2
