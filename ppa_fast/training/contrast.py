"""The interface of a sentence-level objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppa_fast.data.loading.batching import PairBatch
from ppa_fast.model.objective import ContrastLoss, no_contrast
from ppa_fast.ops.assemble import AssembledBatch
from ppa_fast.ops.philox import STREAM_TORCH, torch_seed
from ppa_fast.training import distributed
from ppa_fast.training.prefetcher import MicroBatch


class Contrast:
    """Base class; trains with TLM only. ``Moco`` and ``Symmetric`` override methods.

    Args:
        engine: DeepSpeed engine around the trained :class:`AlignmentModel`.
        seed: the run's seed.
    """

    stream = STREAM_TORCH
    """Philox stream for the dropout seeds of the forwards."""

    def __init__(self, engine: Any, seed: int) -> None:
        self._engine, self._seed = engine, seed

    def begin(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """Starts global step ``step`` with this rank's ``batches``; call it on every rank."""
        self._step = step

    def forward(self, batch: PairBatch, streams: AssembledBatch) -> tuple[Tensor, ContrastLoss]:
        """The sum of the TLM losses (fp32 scalar) and the contrastive loss of a micro-batch, both with their autograd
        graph."""
        tlm_sum, _ = self._encode(batch, streams)
        return tlm_sum, no_contrast(tlm_sum)

    def end(self, applied: bool, momentum: float) -> None:
        """Ends the step. ``applied``: whether the weights were updated; ``momentum``: of the momentum encoder."""

    def _encode(self, batch: PairBatch, streams: AssembledBatch, **options: Any) -> tuple[Tensor, Tensor]:
        """Runs the engine's forward; dropout depends only on the run's seed, the step and the micro-batch."""
        torch.manual_seed(torch_seed(self._seed, 1 + self._step, batch.number, self.stream))
        tlm_sum, vectors = self._engine(streams, **options)
        return tlm_sum, vectors


def gather_step(vectors: Sequence[Tensor], batches: Sequence[PairBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """Gathers, on every rank, vectors [B, …], groups int64 [B] and step indices int64 [B] of a global step's pairs.

    Args:
        vectors: [N, …] for each of ``batches``, the micro-batches of this rank.
    """
    counts = batches[0].totals.pairs_by_rank(distributed.world_size())
    mine = (
        torch.cat(list(vectors)),
        torch.cat([b.groups for b in batches]),
        torch.cat([b.step_indices for b in batches]),
    )
    everyone, groups, indices = (distributed.concatenate_over_ranks(each, counts) for each in mine)
    return everyone, groups, indices
