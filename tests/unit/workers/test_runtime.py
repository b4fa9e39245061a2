"""What a worker tells of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from workers.runtime import WorkerRuntime


@pytest.mark.parametrize(("engine", "device"), [("transformers", "cuda"), ("onnx", "cpu")])
def test_the_device_that_nobody_named_is_the_one_that_the_engine_takes(
    monkeypatch: pytest.MonkeyPatch, engine: str, device: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    runtime: Any = SimpleNamespace(_device="auto", _entry=SimpleNamespace(engine=engine))
    assert WorkerRuntime._find_device(runtime) == device
