"""InfoNCE against a queue of earlier keys (MoCo: He et al., CVPR 2020; paper, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ppa_fast.ops.reference.ring import enqueue, live_rows


def infonce(
    query: Tensor,
    positive: Tensor,
    groups: Tensor,
    ring: Tensor,
    ring_groups: Tensor,
    state: Tensor,
    step_indices: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, top-1 and dq as in ``ops.infonce``, in fp32, or in fp64 for fp64. The loss is differentiable."""
    live = live_rows(state, len(ring))
    q, k, u = (_at_least_fp32(rows) for rows in (query, positive, ring.masked_fill(~live[:, None], 0)))
    positive_logit = (q * k).sum(1, keepdim=True) / temperature
    negative_logits = q @ u.T / temperature
    not_negative = ~live[None, :] | (ring_groups[None, :] == groups[:, None])
    negative_logits = negative_logits.masked_fill(not_negative, -torch.inf)
    total = torch.logsumexp(torch.cat([positive_logit, negative_logits], dim=1), dim=1, keepdim=True)
    loss = (total - positive_logit).squeeze(1)
    top1 = (positive_logit > negative_logits).all(dim=1)
    p = torch.exp(negative_logits - total)
    dq = (p @ u - p.sum(1, keepdim=True) * k) / temperature  # 1 - p+ is the sum of p over the negatives
    if step_indices is not None:
        enqueue(positive, groups, step_indices, ring, ring_groups, state)
    return loss, top1, dq.detach()


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
