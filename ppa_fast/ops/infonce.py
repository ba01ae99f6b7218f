"""InfoNCE against a queue of earlier keys (MoCo: He et al., CVPR 2020; paper, section 2.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppa_fast.ops.checks import check
from ppa_fast.ops.library import operation
from ppa_fast.ops.reference import infonce as reference
from ppa_fast.ops.ring import check_ring

MAX_DIM = 4096


def _fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss, dq = query.new_empty(len(query), dtype=torch.float32), torch.empty_like(query, dtype=torch.float32)
    return loss, torch.empty_like(loss, dtype=torch.bool), dq


_infonce = operation(
    "infonce(Tensor query, Tensor positive, Tensor groups, Tensor(a!) ring, Tensor(b!) ring_groups, Tensor(c!) state,"
    " Tensor? step_indices, float temperature) -> (Tensor loss, Tensor top1, Tensor dq)",
    reference=reference.infonce,
    fake=_fake,
)


def infonce(
    query: Tensor,
    positive: Tensor,
    groups: Tensor,
    ring: Tensor,
    ring_groups: Tensor,
    state: Tensor,
    temperature: float,
    step_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``loss_i = log( e^{q·k+/τ} + Σ_j [group_j ≠ group_i] e^{q·u_j/τ} ) − q·k+/τ`` over the ring's live rows u_j.

    Rows of the query's group translate the same sentence and are not negatives. Only the query gets a gradient, which
    is computed with the loss: ``dq_i = ((p+ − 1) k+ + Σ_j p_j u_j) / τ``. Nothing else is kept for backward, so the
    memory of both passes does not depend on the ring's size.

    Args:
        query, positive: [N, D], N ≥ 1, D a multiple of 8 up to 4,096; fp32 or the ring's dtype; they are rounded to
            the ring's dtype. groups: int64 [N].
        ring, ring_groups, state: as for ``ops.ring.enqueue``, R ≥ 1. Rows that are not live are ignored. On a GPU, with
            D above 256 or in fp32, they must be finite, which ``enqueue`` ensures.
        temperature: τ > 0.
        step_indices: int64 [N], where to enqueue the positives, in the same chain of launches; None writes nothing.

    Returns:
        loss: fp32 [N], not finite if a vector is not. top1: bool [N], whether the positive is strictly above all
            negatives.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """
    check_ring(ring, ring_groups, state)
    dim = ring.shape[1]
    if dim % 8 or not 0 < dim <= MAX_DIM:
        raise ValueError(f"ring: found {dim} columns, expected a multiple of 8 up to {MAX_DIM}")
    check("query", query, [torch.float32, ring.dtype], (None, dim), like=ring)
    n = len(query)
    if n < 1:
        raise ValueError(f"query: found shape {list(query.shape)}, expected at least one row")
    check("positive", positive, [torch.float32, ring.dtype], (n, dim), like=ring)
    check("groups", groups, [torch.int64], (n,), like=ring)
    if step_indices is not None:
        check("step_indices", step_indices, [torch.int64], (n,), like=ring)
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature}, expected more than 0")
    return _InfoNce.apply(query, positive, groups, ring, ring_groups, state, step_indices, temperature)


class _InfoNce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        positive: Tensor,
        groups: Tensor,
        ring: Tensor,
        ring_groups: Tensor,
        state: Tensor,
        step_indices: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        rounded = query.to(ring.dtype), positive.to(ring.dtype)
        loss, top1, dq = _infonce(*rounded, groups, ring, ring_groups, state, step_indices, temperature)
        ctx.save_for_backward(dq)
        ctx.mark_non_differentiable(top1)
        ctx.dtype = query.dtype
        return loss, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (dq,) = ctx.saved_tensors
        # Computed in fp32 and rounded once, in one launch.
        return torch.mul(loss[:, None], dq, out=torch.empty_like(dq, dtype=ctx.dtype)), *[None] * 7
