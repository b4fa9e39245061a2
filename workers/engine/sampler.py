"""Chooses the next token of every row of a batch, with vectorised tensor operations.

What each parameter means:
- `repetition_penalty` divides positive and multiplies negative logits of every token that occurs in the
  prompt or the answer; presence and frequency penalties are subtracted for tokens of the answer only; then
  `logit_bias` is added. Then tokens that the row's grammar does not allow are out, and before `min_tokens` those that
  would end the answer.
- temperature 0 takes the best logit. Otherwise the logits are divided by it, and `top_k`, then `top_p` (of
  what `top_k` left), then `min_p` (relative to the best token) cut the tail of the distribution.
- log probabilities are those of the model itself: before penalties, bias, grammar, temperature and cuts.

Two promises. A row's token depends on that row alone, never on its neighbours: rows are grouped, but each is
decided by its own values. And draws come from `draws.uniform`, so they depend on seed, choice and token index
only. What remains is the rounding of the model itself: its logits may differ in their last bits with the
make-up of a batch, and two runs part where a draw, or a tie of the best two tokens, falls within that
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.engine.base import TokenLogprob
from workers.engine.distribution import CANDIDATES, draw
from workers.engine.draws import uniform
from workers.engine.sequence import LiveSequence
from workers.engine.validation import MAX_LOGPROBS
from workers.engine.vocabulary import Vocabulary

GREEDY_BELOW = 1e-5  # a smaller temperature would overflow, and takes the best token anyway

#: A row, some tokens, and a value for each. Arrays, not tuples: long answers have thousands, at every step.
_Entries = tuple[int, NDArray[np.int64], NDArray[np.float64]]


class Choice(NamedTuple):
    """The token of one row."""

    token: int
    logprob: TokenLogprob | None


class Sampler:
    """Holds no state of sequences: everything a row needs is in its sequence."""

    def __init__(self, vocabulary: Vocabulary, candidates: int = CANDIDATES) -> None:
        self._vocabulary = vocabulary
        self._candidates = candidates

    def choose(self, logits: Tensor, rows: Sequence[LiveSequence]) -> list[Choice]:
        """One token per row of `logits`, a float tensor of shape [rows, vocabulary] that may be written to."""
        reported = [at for at, row in enumerate(rows) if row.request.sampling.logprobs is not None]
        original = logits[reported] if reported else None
        _penalise(logits, rows)
        _constrain(logits, rows)
        tokens = self._pick(logits, rows)
        logprobs: dict[int, TokenLogprob] = {}
        if original is not None:
            chosen = [tokens[at] for at in reported]
            wanted = [rows[at].request.sampling.logprobs or 0 for at in reported]
            logprobs = dict(zip(reported, self._report(original, chosen, wanted), strict=True))
        return [Choice(token, logprobs.get(at)) for at, token in enumerate(tokens)]

    def _pick(self, logits: Tensor, rows: Sequence[LiveSequence]) -> list[int]:
        tokens: list[int] = _best(logits).tolist()
        random = [at for at, row in enumerate(rows) if row.request.sampling.temperature >= GREEDY_BELOW]
        if random:
            own = logits if len(random) == len(rows) else logits[random]
            params = [rows[at].request.sampling for at in random]
            shares = [
                uniform(p.seed, rows[at].request.choice, len(rows[at].tokens))
                for at, p in zip(random, params, strict=True)
            ]
            for at, token in zip(random, draw(own, params, shares, self._candidates).tolist(), strict=True):
                tokens[at] = token
        return tokens

    def _report(self, logits: Tensor, chosen: list[int], wanted: list[int]) -> list[TokenLogprob]:
        """Log probabilities of the chosen tokens, with as many alternatives as each row wants."""
        logprobs = torch.log_softmax(logits, dim=-1)
        index = torch.tensor(chosen, device=logits.device).unsqueeze(1)
        own = logprobs.gather(1, index).squeeze(1).tolist()
        best, ids = logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), dim=-1)
        look_up = self._vocabulary.logprob
        reports = []
        for at, (values, tokens) in enumerate(zip(best.tolist(), ids.tolist(), strict=True)):
            pairs = list(zip(tokens, values, strict=True))[: wanted[at]]
            top = tuple(look_up(token, value) for token, value in pairs)
            reports.append(look_up(chosen[at], own[at], top))
        return reports


def _best(logits: Tensor) -> Tensor:
    """The best token of each row. Raises FloatingPointError for rows without one: the maximum shows whatever is wrong."""
    # numpy's is several times as fast on a CPU: measured in bench/sampler.py.
    best = torch.from_numpy(logits.numpy().argmax(axis=-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)
    wrong = len(best) - int(torch.isfinite(logits.gather(1, best.unsqueeze(1))).sum())
    if wrong:
        raise FloatingPointError(f"the model's logits are no numbers in {wrong} of {len(best)} sequences")
    return best


def _penalise(logits: Tensor, rows: Sequence[LiveSequence]) -> None:
    """Apply penalties and biases in place."""
    repeated: list[_Entries] = []
    added: list[_Entries] = []
    for at, row in enumerate(rows):
        params = row.request.sampling
        if params.repetition_penalty != 1.0:
            tokens = np.array(row.tallies()[1].tokens)
            repeated.append((at, tokens, np.full(len(tokens), params.repetition_penalty)))
        if params.presence_penalty or params.frequency_penalty:
            answer = row.tallies()[0]
            amounts = -params.presence_penalty - params.frequency_penalty * np.array(answer.counts)
            added.append((at, np.array(answer.tokens), amounts))
        if params.logit_bias:
            bias = params.logit_bias
            added.append((at, np.fromiter(bias, np.int64, len(bias)), np.fromiter(bias.values(), float, len(bias))))
    if repeated:
        where, factors = _scatter(repeated, logits)
        values = logits[where]
        logits[where] = torch.where(values > 0, values / factors, values * factors)
    if added:
        where, shifts = _scatter(added, logits)
        logits.index_put_(where, shifts, accumulate=True)


def _constrain(logits: Tensor, rows: Sequence[LiveSequence]) -> None:
    """Put the tokens out, in place, that would end a row too early, or that its grammar does not allow."""
    for at, row in enumerate(rows):
        if row.request.sampling.min_tokens and row.forbidden:
            logits[at, list(row.forbidden)] = -math.inf
    masks = {at: row.constraint.allowed for at, row in enumerate(rows) if row.constraint is not None}
    if not masks:
        return
    words = torch.from_numpy(np.stack(list(masks.values()))).to(logits.device)
    bits = (words.unsqueeze(-1) >> torch.arange(32, dtype=words.dtype, device=words.device)) & 1
    out = (bits.flatten(1) == 0)[:, : logits.shape[-1]]
    bound = torch.tensor(list(masks), device=logits.device)
    logits[bound] = logits[bound].masked_fill(out, -math.inf)


def _scatter(entries: list[_Entries], logits: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    rows, tokens, values = zip(*entries, strict=True)
    at = torch.from_numpy(np.repeat(rows, [len(each) for each in tokens])).to(logits.device)
    where = (at, torch.from_numpy(np.concatenate(tokens)).to(logits.device))
    return where, torch.from_numpy(np.concatenate(values)).to(logits.device, logits.dtype)
