"""A real worker with `engine = "vllm"`: jobs go through the queue, and one whose worker died goes on where it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tasks.jobs import JobSpec, new_id
from tasks.sampling import Sampling
from tests.contract.engines import DEMO
from tests.integration.worker_rig import WorkerRig
from tests.processes import WorkerProcess

#: Called "fake", for that is the model that the rig speaks of.
MODEL = f'[[model]]\nname = "fake"\nengine = "vllm"\npath = "{DEMO}"\nmax_num_seqs = 4\n'

pytestmark = pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo model has no weights here")


@pytest.fixture
def pool(tmp_path: Path, redis_url: str) -> Iterator[WorkerRig]:
    rig = WorkerRig(tmp_path, redis_url)
    rig.models.write_text(MODEL)
    yield rig
    rig.close()


def start(pool: WorkerRig) -> WorkerProcess:
    return pool.launch("").wait_ready(100)


def submit(pool: WorkerRig, text: str, n: int = 1, **sampling: Any) -> str:
    prompt = AutoTokenizer.from_pretrained(DEMO).encode(f"<|user|>{text}<|end|><|assistant|>", add_special_tokens=False)
    fields: dict[str, Any] = {"max_tokens": 3000, "seed": 7} | sampling
    spec = JobSpec(new_id("job"), "completion", "fake", (tuple(prompt),), Sampling(**fields), n=n)
    return pool.wait(pool.store.submit(spec, limit=1000)).id


@pytest.mark.timeout(300)
def test_a_worker_serves_jobs_and_another_goes_on_after_its_death(pool: WorkerRig) -> None:
    first = start(pool)
    counted = submit(pool, "Count from 3 to 9.", temperature=0.0)
    story: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}
    whole = submit(pool, "Tell me a story.", n=2, **story)
    pool.until_over(counted, whole, timeout_s=100)
    assert (pool.text(counted), pool.end(counted).finish) == ("3, 4, 5, 6, 7, 8, 9", "stop")
    profile = pool.wait(pool.store.profile("fake"))
    assert profile is not None
    assert profile != "same"
    assert (profile.max_num_seqs, profile.max_model_len, profile.structured) == (4, 4096, True)
    cut = submit(pool, "Tell me a story.", n=2, **story)
    pool.until_tokens(cut, 200)
    first.signal(signal.SIGKILL)
    first.wait()
    assert not pool.succeeded(cut)
    second = start(pool)
    pool.until_over(cut, timeout_s=100)
    assert len(pool.attempts(cut)) == 2
    for choice in range(2):
        assert pool.text(cut, choice) == pool.text(whole, choice)
        assert len(pool.text(cut, choice)) > 1000
    second.signal(signal.SIGTERM)
    assert second.wait(30) == 0
