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
from workers.engine.draws import uniform
from workers.engine.sequence import LiveSequence
from workers.engine.validation import MAX_LOGPROBS
from workers.engine.vocabulary import Vocabulary

GREEDY_BELOW = 1e-5  # a smaller temperature would overflow, and takes the best token anyway
CANDIDATES = 1024  # rows that need more are sorted in full

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
        best = _best(logits)
        tokens: list[int] = best.tolist()
        random = [at for at, row in enumerate(rows) if row.request.sampling.temperature >= GREEDY_BELOW]
        whole = [at for at in random if not _is_cut(rows[at])]
        cut = [at for at in random if _is_cut(rows[at])]
        for group, draw in ((whole, _draw_whole), (cut, self._draw_cut)):
            if group:
                chosen = draw(
                    _tempered(logits[group], best[group], [rows[at] for at in group]), [rows[at] for at in group]
                )
                for at, token in zip(group, chosen, strict=True):
                    tokens[at] = token
        return tokens

    def _draw_cut(self, logits: Tensor, rows: Sequence[LiveSequence]) -> list[int]:
        """Draw from the best candidates; rows whose cut lies further down are sorted in full."""
        chosen, settled = _draw_best(logits, rows, min(self._candidates, logits.shape[-1]))
        flat = [at for at, done in enumerate(settled) if not done]
        if flat and self._candidates < logits.shape[-1]:
            sorted_in_full, _ = _draw_best(logits[flat], [rows[at] for at in flat], logits.shape[-1])
            for at, token in zip(flat, sorted_in_full, strict=True):
                chosen[at] = token
        return chosen

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


def _is_cut(row: LiveSequence) -> bool:
    sampling = row.request.sampling
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _tempered(logits: Tensor, best: Tensor, rows: Sequence[LiveSequence]) -> Tensor:
    """Weights in proportion to the probabilities; that of the best token is 1."""
    temperatures = _column([row.request.sampling.temperature for row in rows], logits)
    return torch.exp((logits - logits.gather(1, best.unsqueeze(1))) / temperatures)


def _draw_best(weights: Tensor, rows: Sequence[LiveSequence], size: int) -> tuple[list[int], list[bool]]:
    """Draw from the `size` best tokens; for which rows these were enough."""
    values, order = weights.topk(size, dim=-1)
    probs = values / weights.sum(dim=-1, keepdim=True)
    keep, settled = _kept(probs, rows)
    # Drawn in the order of ids: in the order of rank, two tokens with nearly equal logits would swap their shares
    # with the last bit of either, and so with the make-up of the batch.
    order, by_id = order.sort(dim=-1)
    drawn = _draw((probs * keep).gather(1, by_id), rows).unsqueeze(1)
    return order.gather(1, drawn).squeeze(1).tolist(), settled.tolist()


def _kept(probs: Tensor, rows: Sequence[LiveSequence]) -> tuple[Tensor, Tensor]:
    """Which candidates survive the cuts, and for which rows the candidates were enough to know all of them."""
    size = probs.shape[-1]
    params = [row.request.sampling for row in rows]
    limited = _column([float(p.top_k > 0) for p in params], probs) > 0
    top_k = _column([float(p.top_k or size) for p in params], probs)
    ranked = torch.arange(size, device=probs.device, dtype=probs.dtype).unsqueeze(0) < top_k
    left = probs * ranked
    # What top_k left is known only when all of it is among the candidates; the others have the whole mass, 1.
    mass = torch.where(limited, left.sum(dim=-1, keepdim=True), torch.ones_like(top_k))
    before = left.cumsum(dim=-1) - left
    keep = ranked & (before < _column([p.top_p for p in params], probs) * mass)
    keep &= probs >= _column([p.min_p for p in params], probs) * probs[:, :1]
    keep[:, 0] = True
    return keep, torch.where(limited, top_k <= size, ~keep[:, -1:]).squeeze(1)


def _draw_whole(weights: Tensor, rows: Sequence[LiveSequence]) -> list[int]:
    tokens: list[int] = _draw(weights, rows).tolist()
    return tokens


def _draw(weights: Tensor, rows: Sequence[LiveSequence]) -> Tensor:
    """Inverse CDF: the first position at which the running sum of the weights exceeds the drawn share of
    their total.
    """
    draws = [uniform(row.request.sampling.seed, row.request.choice, len(row.tokens)) for row in rows]
    sums = weights.cumsum(dim=-1)
    total = sums[:, -1:]
    # Rounding must not lift a draw to the total itself, past the last token with a weight.
    aim = torch.minimum(_column(draws, weights) * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(sums, aim, right=True).squeeze(1)
    return found.clamp_(max=weights.shape[-1] - 1)


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
