"""What a ready worker tells of itself and its model: the profile and the card. Standard library only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True)
class ModelProfile:
    """What the API must know of a loaded model to render and tokenise prompts without torch.

    `tokenizer` is the JSON of a `tokenizers.Tokenizer`; `special_tokens` maps names like "bos_token" to their text, as
    chat templates expect; `chat_template` is None for a model that serves plain completions only. `max_model_len` is
    the context in tokens, `max_num_seqs` the largest number of choices that one job can have. `sampling` is what the
    model's authors recommend for parameters of `tasks.sampling.Sampling` that a request leaves open. `structured`: the
    engine can bind an answer to a grammar.
    """

    tokenizer: str
    chat_template: str | None
    special_tokens: dict[str, str] = field(default_factory=dict)
    max_model_len: int = 4096
    vocab_size: int = 0
    add_special_tokens: bool = True
    max_num_seqs: int = 32
    sampling: dict[str, float] = field(default_factory=dict)
    structured: bool = False

    @cached_property
    def digest(self) -> str:
        """Changes when anything in the profile does: the key of the API's cache."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelProfile:
        """The inverse of `to_json`. What a newer version added is left out."""
        return cls(**_known(cls, text))


@dataclass(frozen=True)
class WorkerCard:
    """A worker as `/v1/workers` and the CLI show it. Times are seconds since the epoch, rates per second.

    `state` is failed when the model did not load; then `error` says why. While it loads, `progress` says how far it is.
    """

    name: str
    model: str
    engine: str
    state: Literal["loading", "ready", "draining", "failed"]
    gpus: list[int]
    device: str
    lanes: int
    running: int
    host: str
    pid: int
    started: float
    heartbeat: float
    tokens: int = 0
    tokens_per_s: float = 0.0
    kv_used: float = 0.0
    error: str | None = None
    progress: str = ""

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> WorkerCard:
        """The inverse of `to_json`. What a newer version added is left out."""
        return cls(**_known(cls, text))


def _known(kind: type[ModelProfile] | type[WorkerCard], text: str) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in json.loads(text).items() if name in names}
