"""Log probabilities as OpenAI shows them. An entry's are OpenAI's own {"token", "logprob", "bytes", "top_logprobs": [...]}."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def chat_logprobs(tokens: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    return {"content": [{**_token(token), "top_logprobs": _top(token)} for token in tokens], "refusal": None}


@dataclass(slots=True)
class CompletionLogprobs:
    """The `logprobs` of a plain completion, with the running text offset of one choice."""

    offset: int = 0
    rows: list[tuple[str, float, dict[str, float] | None, int]] = field(default_factory=list)

    def add(self, tokens: Sequence[dict[str, Any]]) -> None:
        """The tokens that come next."""
        for token in tokens:
            top = {other["token"]: other["logprob"] for other in token["top_logprobs"]}
            self.rows.append((token["token"], token["logprob"], top or None, self.offset))
            self.offset += len(token["token"])

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        rows, self.rows = self.rows, []
        return {
            "tokens": [row[0] for row in rows],
            "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows],
            "text_offset": [row[3] for row in rows],
        }


def _token(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["token"], "logprob": token["logprob"], "bytes": list(token["bytes"])}


def _top(token: dict[str, Any]) -> list[dict[str, Any]]:
    return [_token(other) for other in token["top_logprobs"]]
