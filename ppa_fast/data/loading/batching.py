"""Splits the pairs of a global step into the micro-batches of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppa_fast.data.loading.packing import Packer, Sizes
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.ops.assemble import Layout


@dataclass(frozen=True)
class StepTotals:
    """Totals of a global step, which every rank computes without communication.

    ``masked``: masked positions of the step. ``text_tokens``: tokens a + b of all pairs, without special tokens.
    ``pairs``: the number of pairs of each micro-batch.
    """

    masked: int
    text_tokens: int
    pairs: tuple[int, ...]

    def pairs_by_rank(self, world_size: int) -> list[int]:
        return [sum(self.pairs[rank::world_size]) for rank in range(world_size)]


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of N pairs, the input of ``ops.assemble``; all tensors are views of ``buffer``.

    ``a_tokens``, ``b_tokens``: int32 [Ta], [Tb]; ``a_offsets``, ``b_offsets``: int32 [N+1]; ``pair_ids``, ``epochs``,
    ``groups``, ``step_indices``: int64 [N], where ``step_indices`` are the indices of the pairs in the global step;
    ``layout``: the layout of the assembled sequences. ``number``: the micro-batch's number in its global step;
    ``totals``: the totals of that step.
    """

    buffer: Tensor
    sizes: Sizes
    a_tokens: Tensor
    a_offsets: Tensor
    b_tokens: Tensor
    b_offsets: Tensor
    pair_ids: Tensor
    epochs: Tensor
    groups: Tensor
    step_indices: Tensor
    layout: Layout
    number: int
    totals: StepTotals

    @classmethod
    def of(cls, buffer: Tensor, sizes: Sizes, number: int, totals: StepTotals) -> PairBatch:
        """Returns the micro-batch that a packer wrote into ``buffer`` on the host."""
        views = sizes.views(buffer)
        a, b, query = (np.diff(views[name].numpy()) for name in ("a_offsets", "b_offsets", "query_cu_seqlens"))
        lengths = query.astype(np.int64), (a + b + 4 - query).astype(np.int64)
        return cls._from_views(buffer, views, sizes, number, totals, lengths)

    @classmethod
    def _from_views(
        cls,
        buffer: Tensor,
        views: dict[str, Tensor],
        sizes: Sizes,
        number: int,
        totals: StepTotals,
        lengths: tuple[NDArray[np.int64], ...],
    ) -> PairBatch:
        bounds = views.pop("query_cu_seqlens"), views.pop("masked_offsets")
        layout = Layout(*bounds, sizes.query_tokens, sizes.masked, *lengths)
        return cls(buffer, sizes, layout=layout, number=number, totals=totals, **views)

    def __len__(self) -> int:
        return self.sizes.pairs

    def to(self, device: torch.device) -> PairBatch:
        """Copies the micro-batch to another device in one transfer, asynchronous if the buffer is pinned."""
        buffer = self.buffer.to(device, non_blocking=self.buffer.is_pinned())
        lengths = self.layout.query_lengths, self.layout.key_lengths
        return PairBatch._from_views(buffer, self.sizes.views(buffer), self.sizes, self.number, self.totals, lengths)


def micro_batches(
    packer: Packer,
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    parts: int,
    rank: int = 0,
    world_size: int = 1,
    pinned: bool = False,
) -> Iterator[PairBatch]:
    """Splits pairs into ``parts`` micro-batches and yields those of one rank: numbers rank, rank + world size, …

    ``rows``: int64 [B], rows of the packer's dataset; ``epochs``: int64 [B], the epoch of each. See
    :meth:`Packer.step`.
    """
    step = packer.step(rows, epochs, parts)
    totals = StepTotals(step.masked, step.text_tokens, tuple(step.pairs))
    for number in range(rank, parts, world_size):
        sizes = Sizes(*step.sizes(number))
        buffer = torch.empty(sizes.bytes, dtype=torch.uint8, pin_memory=pinned)
        step.fill(number, buffer.numpy())
        yield PairBatch.of(buffer, sizes, number, totals)


class Batches:
    """The micro-batches of one rank, by global step.

    A global step of B pairs has A × world size micro-batches, with A = B / (micro_batch × world size) accumulation
    steps. They have nearly equal numbers of tokens, and ``micro_batch`` pairs on average. The a-th micro-batch of this
    rank is number a·world + rank of the split, so that the ranks process sentences of similar length at the same time.
    """

    def __init__(
        self, packer: Packer, sampler: Sampler, micro_batch: int, rank: int, world_size: int, pinned: bool = False
    ) -> None:
        self.packer, self.sampler = packer, sampler
        self.parts = sampler.batch // micro_batch
        self.rank, self.world_size, self.pinned = rank, world_size, pinned

    def __call__(self, step: int) -> list[PairBatch]:
        rows, epochs = self.sampler.draw(step)
        return list(micro_batches(self.packer, rows, epochs, self.parts, self.rank, self.world_size, self.pinned))
