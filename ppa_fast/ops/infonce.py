"""InfoNCE against a queue of earlier keys (MoCo: He et al., CVPR 2020; paper, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def infonce(
    query: Tensor,
    positive: Tensor,
    groups: Tensor,
    queue: Tensor,
    queue_groups: Tensor,
    live: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """``loss_i = log( e^{q·k+/τ} + Σ_j [group_j ≠ group_i] e^{q·u_j/τ} ) − q·k+/τ`` over the live rows u_j.

    Rows of the query's own group are translations of the same sentence, hence not negatives. No gradient flows to keys.

    Args:
        query: [N, D], unit rows. positive: [N, D], unit rows. groups: int64 [N].
        queue: [R, D], unit rows. queue_groups: int64 [R]. live: bool [R], False for empty and pending rows.
        temperature: τ > 0.

    Returns:
        loss: fp32 [N]. top1: bool [N], the positive beats every negative.
    """
    query, positive, queue = query.float(), positive.detach().float(), queue.detach().float()
    positive_logit = (query * positive).sum(1, keepdim=True) / temperature
    negative_logits = query @ queue.T / temperature
    not_negative = ~live[None, :] | (queue_groups[None, :] == groups[:, None])
    negative_logits = negative_logits.masked_fill(not_negative, -torch.inf)
    logits = torch.cat([positive_logit, negative_logits], dim=1)
    loss = torch.logsumexp(logits, dim=1) - positive_logit.squeeze(1)
    top1 = (positive_logit > negative_logits).all(dim=1)
    return loss, top1
