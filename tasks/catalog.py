"""What is served: `models.toml`, read and checked.

Every key is checked by name, so a typo is an error and not a silent default. Relative paths start at the file's folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.errors import BadConfig
from tasks.tables import read_rows

#: Letters, digits and . _ - / : only: names go into Redis keys, Celery queues and URLs as they are.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")


class ModelEntry(BaseModel):
    """One `[[model]]` of models.toml; descriptions are the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the name that clients use")
    path: str = Field("", description="a local folder, or a hub id such as Qwen/Qwen3-0.6B; empty for the fake engine")
    engine: str = Field(
        "transformers",
        description="transformers, vllm, onnx (exports, on a CPU), or fake (scripted, for tests and load tests)",
    )
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none", description="how weights are stored: none (as the checkpoint says), int8, or nf4 (4 bits)"
    )
    device: str = Field("auto", description="auto, cpu or cuda")
    gpus: list[int] = Field(
        default=[],
        description="its GPUs, split evenly over its replicas; a replica with several spreads the model over them",
    )
    replicas: int = Field(1, ge=0, le=64, description="worker processes")
    max_num_seqs: int = Field(32, ge=1, le=1024, description="sequences that one worker runs at a time")
    max_model_len: int | None = Field(None, ge=16, description="context in tokens; empty: the model's own")
    max_waiting: int = Field(1000, ge=0, description="jobs in line before submits are refused with 429")
    max_waiting_tokens: int = Field(
        0, ge=0, description="the same in tokens, prompts and expected answers together; 0: any number"
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("use letters, digits and . _ - / : only, at most 128")
        return value


class Catalog:
    """All models that are served, in the order of the file. Look-ups by name."""

    def __init__(self, entries: list[ModelEntry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        if len(self.entries) != len(entries):
            names = [entry.name for entry in entries]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadConfig(
                f"model name {twice!r} is used twice: every [[model]] needs a name of its own", param="name"
            )

    def get(self, name: str) -> ModelEntry | None:
        """The entry of a served model, or None."""
        return self.entries.get(name)


def load_catalog(path: Path) -> Catalog:
    """Read and check a models.toml. Raises `BadConfig` naming the file, the key and the remedy."""
    rows = read_rows(path, "model", ModelEntry, "PENSTOCK_MODELS")
    if not rows:
        raise BadConfig(f"{path}: no [[model]] table in it", param="models")
    try:
        return Catalog([row.model_copy(update={"path": _resolve(row, label, path)}) for label, row in rows])
    except BadConfig as error:
        message = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise BadConfig(message, param=error.param) from None


def _resolve(entry: ModelEntry, label: str, file: Path) -> str:
    """A local folder becomes absolute; a hub id stays. What looks like a path must exist."""
    if entry.engine == "fake":
        return entry.path
    if not entry.path:
        raise BadConfig(f"{label}: key 'path': a local folder or a hub id is needed", param="path")
    folder = (file.parent / Path(entry.path).expanduser()).resolve()
    if folder.is_dir():
        return str(folder)
    looks_local = entry.path.startswith((".", "/", "~")) or entry.path.count("/") != 1
    if looks_local or (file.parent / entry.path.split("/")[0]).is_dir():
        raise BadConfig(f"{label}: key 'path': there is no folder {folder}", param="path")
    return entry.path
