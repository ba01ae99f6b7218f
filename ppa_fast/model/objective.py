"""The multi-task loss of a step (paper, section 2.3), in sums, so that micro-batches of any cut add up to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppa_fast.model.queue import KeyQueue
from ppa_fast.ops.infonce import infonce


@dataclass(frozen=True)
class Weights:
    """Weights of the objectives (0 for one that is off) and InfoNCE's temperature."""

    tlm: float
    moco: float
    temperature: float


@dataclass(frozen=True)
class Losses:
    """``total``: the micro-batch's part of the global step's loss, to run backward from; ``tlm``, ``moco``: sums over
    its masked rows and pairs, detached; ``top1``: how many positives beat all their negatives."""

    total: Tensor
    tlm: Tensor
    moco: Tensor
    top1: Tensor


def objective(
    tlm_sum: Tensor,
    query: Tensor,
    keys: Tensor,
    groups: Tensor,
    queue: KeyQueue,
    weights: Weights,
    masked_in_step: int,
    pairs_in_step: int,
) -> Losses:
    """``w_tlm · Σ TLM / masked rows of the step + w_moco · Σ InfoNCE / pairs of the step``.

    The denominators are those of the whole global step, over all ranks and micro-batches: the sum of all totals is the
    step's loss with true global means. No masked row in the step: the TLM loss is 0.

    A loss that is not finite can have gradients that are, and a key has none: the total is NaN then, its gradients too,
    and so the norm of the step's gradient alone decides, on every rank, whether the step is skipped.

    Args:
        tlm_sum: fp32 scalar. query, keys: [N, D] unit rows. groups: int64 [N].
    """
    moco_sum = top1 = torch.zeros_like(tlm_sum)
    if weights.moco:
        loss, hits = infonce(query, keys, groups, queue.vectors, queue.groups, queue.state, weights.temperature)
        moco_sum, top1 = loss.sum(), hits.sum()
    total = weights.tlm * tlm_sum / max(masked_in_step, 1) + weights.moco * moco_sum / pairs_in_step
    finite = tlm_sum.isfinite() & moco_sum.isfinite() & keys.isfinite().all()
    total = total * torch.ones_like(total).masked_fill(~finite, torch.nan)
    return Losses(total=total, tlm=tlm_sum.detach(), moco=moco_sum.detach(), top1=top1)
