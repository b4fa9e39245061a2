"""Drawing from a distribution over the vocabulary: temperature, cuts of its tail, and a draw from what is left.

A cut is a least probability: `top_k` that of the k-th best token, `top_p` that of the last of the best tokens that make up
this share of what `top_k` left, `min_p` a share of the best token's. Tokens as probable as the last one that is kept are
kept too, so that nothing hangs on the order of equals.

Nothing here sorts a vocabulary. The best `CANDIDATES` tokens settle most cuts; a cut further down is found in a histogram. A
token is drawn by the inverse of the cumulative distribution, in the order of ids: sums of blocks of tokens first, then the
tokens of one block. In the order of rank, two tokens with nearly equal logits would swap their shares with the last bit of
either, and so with the make-up of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.sampling import Sampling

CANDIDATES = 1024
_BLOCK = 512
_CPU_NUMBERS = (
    1 << 20
)  # of logits: on a CPU, more at a time would be written to fresh memory, which takes several times as long
_BIN_BITS = 14  # trailing bits of a float that do not tell its bin: 512 bins from one power of two to the next


def draw(logits: Tensor, params: Sequence[Sampling], shares: Sequence[float], candidates: int = CANDIDATES) -> Tensor:
    """One token per row of `logits` [rows, vocabulary], which is written to; `shares` are numbers in [0, 1)."""
    at_once = len(params) if logits.device.type != "cpu" else max(1, _CPU_NUMBERS // logits.shape[-1])
    parts = [slice(begin, begin + at_once) for begin in range(0, len(params), at_once)]
    return torch.cat([_draw(logits[part], params[part], shares[part], candidates) for part in parts])


def _draw(logits: Tensor, params: Sequence[Sampling], shares: Sequence[float], candidates: int) -> Tensor:
    temperatures = _column([p.temperature for p in params], logits)
    probs = torch.softmax(logits.div_(temperatures), dim=-1)
    if any(p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0 for p in params):
        probs.masked_fill_(probs < _limits(probs, params, candidates), 0.0)
    return _inverse(probs, shares)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _limits(probs: Tensor, params: Sequence[Sampling], candidates: int) -> Tensor:
    """The least probability that each row keeps, [rows, 1]."""
    limits = probs.amax(dim=-1, keepdim=True) * _column([p.min_p for p in params], probs)
    ranked = [at for at, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
    if ranked:
        own = probs if len(ranked) == len(params) else probs[ranked]
        limits[ranked] = torch.maximum(limits[ranked], _rank_limits(own, [params[at] for at in ranked], candidates))
    return limits


def _rank_limits(probs: Tensor, params: Sequence[Sampling], candidates: int) -> Tensor:
    """What `top_k` and `top_p` keep at least, [rows, 1]."""
    wanted = max(candidates if p.top_p < 1.0 else min(p.top_k, candidates) for p in params)
    size = min(wanted, probs.shape[-1])
    best = probs.topk(size, dim=-1).values
    sums = best.double().cumsum(dim=-1)
    top_k = torch.tensor([min(p.top_k or probs.shape[-1], probs.shape[-1]) for p in params], device=probs.device)
    worst = best.gather(1, top_k.clamp(max=size).unsqueeze(1) - 1)
    last = (best >= worst).sum(dim=-1, keepdim=True) - 1  # the k-th, and those that are equal to it
    # All that `top_k` leaves is among the candidates; without `top_k`, the mass is 1.
    known = (top_k <= size) & ((last.squeeze(1) < size - 1) | (size == probs.shape[-1]))
    limited = torch.tensor([p.top_k > 0 for p in params], device=probs.device).unsqueeze(1)
    goal = _column([p.top_p for p in params], sums) * torch.where(limited, sums.gather(1, last), 1.0)
    kept = torch.searchsorted(sums, goal).minimum(
        last
    )  # the first place whose sum reaches the goal is the last one kept
    limits = best.gather(1, kept)
    settled = known | ((~limited & (sums[:, -1:] >= goal)).squeeze(1))
    for at in (~settled).nonzero().flatten().tolist():
        limits[at] = _search(probs[at].cpu().numpy(), params[at])
    return limits


def _search(probs: NDArray[np.float32], params: Sampling) -> float:
    """The same for one row, however many tokens it keeps."""
    bins = probs.view(np.int32) >> _BIN_BITS  # numbers that are not negative have the order of their bits
    limit, mass = 0.0, 1.0
    if params.top_k > 0:
        limit = _reach(probs, bins, None, params.top_k)
        mass = float(probs.sum(where=probs >= limit, dtype=np.float64))
    if params.top_p < 1.0:
        limit = _reach(probs, bins, probs, params.top_p * mass)  # within what top_k left, so not below its limit
    return limit


def _reach(
    probs: NDArray[np.float32], bins: NDArray[np.int32], amounts: NDArray[np.float32] | None, goal: float
) -> float:
    """The probability at which the amounts of all tokens that are at least as probable reach the goal; 0 where they
    do not. Without amounts, tokens are counted.
    """
    sums = np.bincount(bins, amounts)[::-1].cumsum()
    at = int(np.searchsorted(sums, goal))
    if at == len(sums):  # rounding has put the goal past the sum of all
        return 0.0
    members = np.sort(probs[bins == len(sums) - 1 - at])[::-1]
    before = sums[at - 1] if at else 0.0
    inside = members.cumsum(dtype=np.float64) if amounts is not None else np.arange(1, len(members) + 1)
    return float(members[min(int(np.searchsorted(inside, goal - before)), len(members) - 1)])


def _inverse(weights: Tensor, shares: Sequence[float]) -> Tensor:
    """The first token of each row at which the running sum of weights exceeds the share of their total."""
    width = weights.shape[-1]
    whole = width // _BLOCK * _BLOCK
    blocks = weights[:, :whole].reshape(len(weights), -1, _BLOCK).sum(dim=-1)
    if whole < width:
        blocks = torch.cat([blocks, weights[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    sums = blocks.double().cumsum(dim=-1)
    aim = torch.tensor(shares, dtype=torch.float64, device=weights.device).unsqueeze(1) * sums[:, -1:]
    block = _first_above(sums, aim)
    aim -= sums.gather(1, block) - blocks.double().gather(1, block)  # what is left of it when the block begins
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, tokens.clamp(max=width - 1)).double().masked_fill_(tokens >= width, 0.0)
    return (block * _BLOCK + _first_above(inside.cumsum(dim=-1), aim)).squeeze(1)


def _first_above(sums: Tensor, aim: Tensor) -> Tensor:
    """Where running sums first exceed the aim. Rounding must not lift it to their total, past the last positive weight."""
    below = torch.nextafter(sums[:, -1:], torch.zeros_like(aim))
    return torch.searchsorted(sums, torch.minimum(aim, below), right=True)
