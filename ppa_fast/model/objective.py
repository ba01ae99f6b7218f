"""The multi-task loss of a step (paper, section 2.3), computed as sums that add up over micro-batches of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppa_fast.model.queue import KeyQueue
from ppa_fast.ops.infonce import infonce


@dataclass(frozen=True)
class Weights:
    """The weights of TLM and of the sentence-level objective (0 if disabled), and InfoNCE's temperature."""

    tlm: float
    contrast: float
    temperature: float


class ContrastLoss(NamedTuple):
    """``loss``: the sum over a micro-batch's pairs, with its graph; ``top1``: number of positives that score above all
    their negatives; ``vectors``: [N, D], the vectors that get no gradient through this graph."""

    loss: Tensor
    top1: Tensor
    vectors: Tensor


def no_contrast(like: Tensor) -> ContrastLoss:
    """Zeros like the scalar ``like``, for a step without a contrast."""
    zero = torch.zeros_like(like)
    return ContrastLoss(zero, zero, zero)


def moco_loss(query: Tensor, keys: Tensor, groups: Tensor, queue: KeyQueue, weights: Weights) -> ContrastLoss:
    """InfoNCE of ``query`` and ``keys`` ([N, D], unit rows; ``groups`` int64 [N]) against the queue; zeros if the
    weight is 0."""
    if not weights.contrast:
        return no_contrast(query.new_zeros(()))._replace(vectors=keys)
    loss, hits = infonce(query, keys, groups, queue.vectors, queue.groups, queue.state, weights.temperature)
    return ContrastLoss(loss.sum(), hits.sum(), keys)


@dataclass(frozen=True)
class Losses:
    """``total``: the micro-batch's part of the global step's loss, for backward; ``tlm``, ``contrast``: sums over its
    masked positions and pairs, detached; ``top1``: number of positives that score above all their negatives."""

    total: Tensor
    tlm: Tensor
    contrast: Tensor
    top1: Tensor


def objective(
    tlm_sum: Tensor,
    contrast: ContrastLoss,
    weights: Weights,
    masked_in_step: int,
    pairs_in_step: int,
) -> Losses:
    """``w_tlm · Σ TLM / masked positions + w_contrast · Σ InfoNCE / pairs``, both counted over the global step.

    The sum of the totals over all ranks and micro-batches is then the step's loss with global means. ``tlm_sum``: fp32
    scalar. Without masked positions in the step, the TLM loss is 0.

    If a loss or a vector is not finite, the total and its gradients become NaN: a non-finite loss can have finite
    gradients, and keys have no gradient. Every rank then decides by the gradient norm whether to skip the step.
    """
    contrast_sum, top1, vectors = contrast
    total = weights.tlm * tlm_sum / max(masked_in_step, 1) + weights.contrast * contrast_sum / pairs_in_step
    finite = tlm_sum.isfinite() & contrast_sum.isfinite() & vectors.isfinite().all()
    total = total * torch.ones_like(total).masked_fill(~finite, torch.nan)
    return Losses(total=total, tlm=tlm_sum.detach(), contrast=contrast_sum.detach(), top1=top1)
