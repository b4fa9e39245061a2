"""What every engine refuses in `submit`, with a message that names the parameter. Engines add limits of their
own.

One bad request must not be able to fail a step, because a failing step costs every sequence of the batch a
retry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.sampling import Sampling
from workers.engine.base import InvalidRequest, ModelProfile, Request

MAX_LOGPROBS = 20


def validate(request: Request, profile: ModelProfile) -> None:
    """Raise `InvalidRequest` for a request that cannot be run on the model of `profile`."""
    if not request.prompt:
        raise InvalidRequest("the prompt is empty")
    _check_ids("the prompt", request.prompt, profile.vocab_size)
    _check_ids("the answer so far", request.done, profile.vocab_size)
    if request.choice < 0 or request.emitted < 0:
        raise InvalidRequest("choice and emitted must not be negative")
    check_sampling(request.sampling, profile.vocab_size)
    asked = len(request.prompt) + request.sampling.max_tokens
    if asked > profile.max_model_len:
        raise InvalidRequest(
            f"the context of this model is {profile.max_model_len} tokens, but {asked} are asked for: "
            f"{len(request.prompt)} in the prompt and max_tokens={request.sampling.max_tokens}",
            code="context_length_exceeded",
        )


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """Raise `InvalidRequest` for the first parameter that is out of its range."""
    ranges: list[tuple[str, float, float, float]] = [
        ("max_tokens", sampling.max_tokens, 1, math.inf),
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("top_k", sampling.top_k, 0, math.inf),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("top_p", sampling.top_p, math.ulp(0.0), 1.0),
        ("presence_penalty", sampling.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", sampling.frequency_penalty, -100.0, 100.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0),
        ("logprobs", sampling.logprobs or 0, 0, MAX_LOGPROBS),
        ("min_tokens", sampling.min_tokens, 0, sampling.max_tokens),
        *(("logit_bias", bias, -1000.0, 1000.0) for bias in sampling.logit_bias.values()),
    ]
    for name, value, low, high in ranges:
        if not low <= value <= high:  # NaN compares false, so it is refused here too
            raise InvalidRequest(f"{name} must be from {low:g} to {high:g}, not {value}")
    _check_ids("logit_bias", list(sampling.logit_bias), vocab_size)
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocab_size)
    if not all(sampling.stop):
        raise InvalidRequest("a stop string is empty")


def _check_ids(where: str, ids: Sequence[int], vocab_size: int) -> None:
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InvalidRequest(f"{where} has token ids outside the vocabulary of {vocab_size}")
