"""InfoNCE in both directions over the global step, with gradients through both sides, by a gradient cache.

The loss of a pair depends on the vectors of all pairs in the step. The cache (Gao et al., "Scaling deep contrastive
learning batch size under memory limited setup", RepL4NLP 2021) stores activations of one micro-batch at a time. A first
pass computes all vectors without a graph. The loss then yields the gradient of each vector. A second pass recomputes
the vectors and runs backward from these gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppa_fast.data.loading.batching import PairBatch
from ppa_fast.model.objective import ContrastLoss
from ppa_fast.model.symmetric_infonce import symmetric_infonce
from ppa_fast.ops.assemble import AssembledBatch
from ppa_fast.ops.philox import STREAM_SYMMETRIC
from ppa_fast.training.contrast import Contrast, gather_step
from ppa_fast.training.prefetcher import MicroBatch


class Symmetric(Contrast):
    """Encodes both sentences of each pair with the trained encoder. Negatives of a sentence are the vectors of the
    other side that belong to other groups.

    Args:
        engine, seed: as for :class:`Contrast`. temperature: τ.
    """

    stream = STREAM_SYMMETRIC

    def __init__(self, engine: Any, seed: int, temperature: float) -> None:
        super().__init__(engine, seed)
        self._temperature = temperature

    def begin(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """Computes the vectors of all ranks' micro-batches, the loss of each pair and the gradient of each vector.

        A single micro-batch keeps its graph and is not encoded twice.
        """
        super().begin(step, batches)
        single = len(batches) == 1
        with torch.set_grad_enabled(single):
            outputs = [self._encode(batch, streams, tlm=single) for batch, streams in batches]
        self._kept = outputs[0] if single else None
        vectors = [both.detach().unflatten(0, (2, -1)).transpose(0, 1) for _, both in outputs]  # [N, 2, D]
        everyone, groups, indices = gather_step(vectors, [batch for batch, _ in batches])
        order = indices.argsort()  # same rounding for any split into micro-batches
        query, key = everyone[order].unbind(1)
        self._losses = symmetric_infonce(query.contiguous(), key.contiguous(), groups[order], self._temperature)

    def forward(self, batch: PairBatch, streams: AssembledBatch) -> tuple[Tensor, ContrastLoss]:
        tlm_sum, vectors = self._kept or self._encode(batch, streams)
        own = batch.step_indices
        loss, top1, d_query, d_key = (each[own] for each in self._losses)
        gradient = torch.cat([d_query, d_key])
        # The value is the loss of these pairs; the gradient is that of the global step's loss.
        total = loss.sum() + ((vectors - vectors.detach()) * gradient).sum()
        return tlm_sum, ContrastLoss(total, top1.sum(), vectors.detach())
