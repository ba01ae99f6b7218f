"""InfoNCE in both directions over the pairs of a step, with gradients for both sides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 2**22  # logits in memory at a time: 16 MiB in fp32


class SymmetricInfoNce(NamedTuple):
    """``loss``: [N], the mean of each pair's two directions; ``top1``: [N], the share of each pair's two directions in
    which the positive scores strictly above all negatives; ``d_query``, ``d_key``: [N, D], gradients of the loss sum.
    """

    loss: Tensor
    top1: Tensor
    d_query: Tensor
    d_key: Tensor


def symmetric_infonce(query: Tensor, key: Tensor, groups: Tensor, temperature: float) -> SymmetricInfoNce:
    """``loss_i = (l_i(q, k) + l_i(k, q)) / 2``, where
    ``l_i(q, k) = log(e^{q_i·k_i/τ} + Σ_j [group_j ≠ group_i] e^{q_i·k_j/τ}) − q_i·k_i/τ``.

    Memory besides the results: ``CHUNK`` logits, or one row of logits if it is larger.

    Args:
        query, key: fp32 or fp64 [N, D], unit rows; N ≥ 1.
        groups: int64 [N]; pairs of the same group translate the same sentence and are not negatives.
        temperature: τ > 0.
    """
    forth, back = (_one_direction(*sides, groups, temperature) for sides in ((query, key), (key, query)))
    return SymmetricInfoNce(
        (forth.loss + back.loss) / 2,
        (forth.top1 + back.top1) / 2,
        (forth.d_query + back.d_key) / 2,
        (forth.d_key + back.d_query) / 2,
    )


@torch.no_grad()
def _one_direction(query: Tensor, key: Tensor, groups: Tensor, temperature: float) -> SymmetricInfoNce:
    """Compares each query with all keys, one chunk of queries at a time."""
    n = len(query)
    empty = query.new_empty
    found = SymmetricInfoNce(empty(n), empty(n), torch.empty_like(query), torch.zeros_like(key))
    size = max(1, CHUNK // n)
    for first in range(0, n, size):
        part = slice(first, first + size)
        logits = query[part] @ key.T / temperature
        positive = logits.diagonal(first).clone()
        negatives = logits.masked_fill_(groups[part, None] == groups, -torch.inf)
        total = torch.logaddexp(negatives.logsumexp(1), positive)
        found.loss[part] = total - positive
        found.top1[part] = (positive > negatives.amax(1)).to(query.dtype)
        weights = negatives.sub_(total[:, None]).exp_()
        missed = weights.sum(1, keepdim=True)  # 1 − the positive's weight
        found.d_query[part] = (weights @ key - missed * key[part]) / temperature
        found.d_key.add_(weights.T @ query[part] / temperature)
        found.d_key[part] -= missed * query[part] / temperature
    return found
