"""MoCo over a global step: momentum encoder, queue and InfoNCE (He et al., CVPR 2020; paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppa_fast.data.loading.batching import PairBatch
from ppa_fast.model.momentum import MomentumEncoder
from ppa_fast.model.objective import ContrastLoss, Weights, moco_loss
from ppa_fast.model.queue import KeyQueue
from ppa_fast.ops.assemble import AssembledBatch
from ppa_fast.training.contrast import Contrast, gather_step
from ppa_fast.training.prefetcher import MicroBatch


class Moco(Contrast):
    """Contrasts each query's own key with queued keys of other groups; the momentum encoder computes keys.

    The keys of a step enter the queue after the step, or, with ``in_batch_negatives``, before its queries are scored.

    Args:
        engine, seed: as for :class:`Contrast`.
        momentum: the momentum encoder. queue: earlier keys. weights: objective weights and temperature.
        in_batch_negatives: whether a step's keys are negatives of its queries.
    """

    def __init__(
        self,
        engine: Any,
        seed: int,
        momentum: MomentumEncoder,
        queue: KeyQueue,
        weights: Weights,
        in_batch_negatives: bool,
    ) -> None:
        super().__init__(engine, seed)
        self._momentum, self._queue, self._weights = momentum, queue, weights
        self._in_batch_negatives = in_batch_negatives

    def begin(self, step: int, batches: Sequence[MicroBatch]) -> None:
        super().begin(step, batches)
        self._batches = [batch for batch, _ in batches]
        self._keys: dict[int, Tensor] = {}
        if self._in_batch_negatives:
            self._before = self._queue.state.clone()
            self._keys = {batch.number: self._momentum.keys(streams.key) for batch, streams in batches}
            self._enqueue()

    def forward(self, batch: PairBatch, streams: AssembledBatch) -> tuple[Tensor, ContrastLoss]:
        if not self._in_batch_negatives:
            self._keys[batch.number] = self._momentum.keys(streams.key)
        tlm_sum, query = self._encode(batch, streams)
        return tlm_sum, moco_loss(query, self._keys[batch.number], batch.groups, self._queue, self._weights)

    def end(self, applied: bool, momentum: float) -> None:
        """Updates the momentum encoder and enqueues the keys; a skipped step changes neither."""
        if applied:
            self._momentum.update(momentum)
            if not self._in_batch_negatives:
                self._enqueue()
        elif self._in_batch_negatives:
            self._queue.state.copy_(self._before)  # makes the rows of the keys pending again

    def _enqueue(self) -> None:
        """Adds the keys of all ranks to the queue's live rows, in the order of their pairs."""
        keys = [self._keys[batch.number] for batch in self._batches]
        self._queue.enqueue(*gather_step(keys, self._batches))
        self._queue.commit(sum(self._batches[0].totals.pairs))
