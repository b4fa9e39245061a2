"""What importing the worker's app prepares: everything follows from the model's entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.processes import ROOT

LOOK = """
import json, os, sys
import workers.main as main
conf = main.app.conf
print(json.dumps({
    "pool": conf.worker_pool, "lanes": conf.worker_concurrency, "queues": [queue.name for queue in conf.task_queues],
    "late": conf.task_acks_late, "accept": conf.accept_content, "backend": conf.result_backend,
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"),
    "torch": "torch" in sys.modules, "name": main.runtime.name, "task": "penstock.generate" in main.app.tasks,
}))
"""
MODELS = """
[[model]]
name = "small"
engine = "fake"
max_num_seqs = 5
gpus = [2, 3]

[[model]]
name = "lab/big:v2"
engine = "fake"
"""


def look(folder: Path, **env: str) -> dict[str, object]:
    (folder / "models.toml").write_text(MODELS)
    settings = {
        "PENSTOCK_REDIS_URL": "redis://127.0.0.1:1/0",
        "PENSTOCK_MODELS": str(folder / "models.toml"),
        "PENSTOCK_MODEL": "small",
        "PATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, env=settings | env, capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        return {"error": done.stderr}
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_pool_lanes_and_queue_follow_from_the_entry(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found["pool"], found["lanes"], found["queues"]) == ("workers.lanes:LanePool", 5, ["penstock.small"])
    assert (found["late"], found["accept"], found["backend"], found["task"]) == (False, ["json"], None, True)
    assert str(found["name"]).startswith("small-")
    assert look(tmp_path)["name"] != found["name"]
    assert look(tmp_path, PENSTOCK_MODEL="lab/big:v2")["queues"] == ["penstock.lab/big:v2"]


def test_gpus_and_threads_are_set_before_torch_can_look(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found["gpus"], found["torch"]) == ("2,3", False)
    assert look(tmp_path, PENSTOCK_GPUS="1")["gpus"] == "1"
    assert look(tmp_path, PENSTOCK_MODEL="lab/big:v2")["gpus"] is None
    assert look(tmp_path, PENSTOCK_THREADS="3", OMP_NUM_THREADS="9")["threads"] == "3"
    assert look(tmp_path, OMP_NUM_THREADS="9")["threads"] == "9"
    assert int(str(found["threads"])) >= 1


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    for env, expected in (
        ({"PENSTOCK_MODEL": ""}, "has: small, lab/big:v2"),
        ({"PENSTOCK_GPUS": "all"}, "write numbers, as in 0,1"),
        ({"PENSTOCK_LEASES": "3"}, "PENSTOCK_LEASES is not a setting"),
    ):
        error = str(look(tmp_path, **env)["error"])
        assert expected in error
        assert len(error.strip().splitlines()) == 1
