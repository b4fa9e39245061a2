"""How the tokens of one choice are chosen: the sampling parameters of a request.

One frozen value serves the API (which validates and fills it), the store (which keeps it as JSON) and the engines
(which obey it). It imports only the standard library, so that `workers.engine` can use it without Celery or Redis.
Neutral values switch a feature off; an engine must treat them as "not asked for".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like: a JSON schema (as JSON), a regular expression, or a grammar in Lark's notation.

    `tasks.grammar` checks it and makes it ready for the engines.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, after validation and with every default filled in.

    `max_tokens` bounds the answer of one choice, in tokens, over all attempts of the job. `seed` is always set: a
    request without one gets one at submit, so that a resumed job draws the same tokens. `logprobs` is None when
    none are wanted, else the number of alternatives to report (0: only the chosen token). `grammar` is None for an
    answer of any form. `stop_token_ids` end the answer as the model's own end tokens do, which `ignore_eos` makes
    tokens like all others; neither kind is chosen before `min_tokens`.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_json` reads it back. It has only what is asked for: a worker of an older version
        refuses what it does not know.
        """
        data = {name: value for name in _FIELDS if (value := getattr(self, name)) != _NEUTRAL.get(name)}
        return data | ({"grammar": asdict(self.grammar)} if self.grammar else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sampling:
        """The inverse of `to_json`: JSON turned the keys of `logit_bias` into strings and tuples into lists."""
        bias = {int(token): float(value) for token, value in data.get("logit_bias", {}).items()}
        grammar = data.get("grammar")
        made = {"logit_bias": bias, "grammar": grammar and Grammar(**grammar)}
        made |= {name: tuple(data.get(name, ())) for name in ("stop", "stop_token_ids")}
        return cls(**{**data, **made})


_FIELDS = tuple(each.name for each in fields(Sampling))
_NEUTRAL = {
    each.name: getattr(Sampling(1, 0), each.name)
    for each in fields(Sampling)
    if each.name not in ("max_tokens", "seed")
}
