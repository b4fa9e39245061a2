"""Exports for the engine "onnx", made on the spot by onnxruntime-genai's model builder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

HAS_BUILDER = find_spec("onnxruntime_genai") is not None
PRUNED = ("--extra_options", "prune_lm_head=true")
_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


@cache
def export(source: Path, precision: str = "fp32", options: Sequence[str] = PRUNED) -> Path:
    """The export of a folder."""
    folder = _folder()
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(source), "-o", str(folder), "-p", precision, "-e", "cpu", *options]
    made = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if made.returncode:
        raise RuntimeError(f"the model builder failed: {made.stderr[-2000:]}")
    return folder


@cache
def checkpoint(family: str) -> Path:
    """The folder of a tiny model."""
    from tests.tiny_models import fast_tokenizer, tiny_model

    folder = _folder()
    tiny_model(family).save_pretrained(folder)
    fast_tokenizer().save_pretrained(folder)
    return folder


def _folder() -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="penstock-export-"))
    return Path(_kept[-1].name)
