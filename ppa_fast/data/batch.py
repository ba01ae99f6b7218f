"""From a global step's pairs to the micro-batches of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppa_fast.data.pack import Packer, Sizes
from ppa_fast.data.sampler import Sampler
from ppa_fast.ops.assemble import Layout


@dataclass(frozen=True)
class StepTotals:
    """What every rank knows of a global step without asking the others.

    Of the whole step ``masked``: masked rows; ``text_tokens``: tokens a + b of all pairs, special tokens not counted.
    ``pairs``: how many pairs each micro-batch has, by number.
    """

    masked: int
    text_tokens: int
    pairs: tuple[int, ...]

    def pairs_by_rank(self, world_size: int) -> list[int]:
        return [sum(self.pairs[rank::world_size]) for rank in range(world_size)]


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch of N pairs: what ``ops.assemble`` reads, all of it views of one ``buffer``.

    ``a_tokens``, ``b_tokens``: int32 [Ta], [Tb]; ``a_offsets``, ``b_offsets``: int32 [N+1]; ``pair_ids``, ``epochs``,
    ``groups``, ``positions``: int64 [N], the last being the pair's place in the global step; ``layout``: of its
    streams. ``number``: which micro-batch of the global step ``step`` this is.
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
    positions: Tensor
    layout: Layout
    number: int
    step: StepTotals

    @classmethod
    def of(cls, buffer: Tensor, sizes: Sizes, number: int, step: StepTotals) -> PairBatch:
        """The micro-batch that a packer wrote into ``buffer``, on the host."""
        views = sizes.views(buffer)
        a, b, query = (np.diff(views[name].numpy()) for name in ("a_offsets", "b_offsets", "query_cu_seqlens"))
        lengths = query.astype(np.int64), (a + b + 4 - query).astype(np.int64)
        return cls._viewing(buffer, views, sizes, number, step, lengths)

    @classmethod
    def _viewing(
        cls,
        buffer: Tensor,
        views: dict[str, Tensor],
        sizes: Sizes,
        number: int,
        step: StepTotals,
        lengths: tuple[NDArray[np.int64], ...],
    ) -> PairBatch:
        bounds = views.pop("query_cu_seqlens"), views.pop("masked_cu_rows")
        layout = Layout(*bounds, sizes.query_tokens, sizes.masked, *lengths)
        return cls(buffer, sizes, layout=layout, number=number, step=step, **views)

    def __len__(self) -> int:
        return self.sizes.pairs

    def to(self, device: torch.device) -> PairBatch:
        """The same on another device: one copy, which does not wait if the buffer is pinned."""
        buffer = self.buffer.to(device, non_blocking=self.buffer.is_pinned())
        lengths = self.layout.query_lengths, self.layout.key_lengths
        return PairBatch._viewing(buffer, self.sizes.views(buffer), self.sizes, self.number, self.step, lengths)


def micro_batches(
    packer: Packer,
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    parts: int,
    rank: int = 0,
    world_size: int = 1,
    pinned: bool = False,
) -> Iterator[PairBatch]:
    """Cuts the pairs at these rows of the packer's table, drawn for these epochs (both int64 [B]), into ``parts``
    micro-batches; yields those of one rank, packed one at a time: numbers rank, rank + world size, … See
    :meth:`Packer.step`."""
    step = packer.step(rows, epochs, parts)
    totals = StepTotals(step.masked, step.text_tokens, tuple(step.pairs))
    for number in range(rank, parts, world_size):
        sizes = Sizes(*step.sizes(number))
        buffer = torch.empty(sizes.bytes, dtype=torch.uint8, pin_memory=pinned)
        step.fill(number, buffer.numpy())
        yield PairBatch.of(buffer, sizes, number, totals)


class Batches:
    """The micro-batches of one rank, by global step.

    A global step of B pairs has A × world size of them, with A = B / (micro-batch × world size) accumulation steps: of
    nearly equal tokens, and of ``micro_batch`` pairs on average. This rank's a-th is number a·world + rank of the cut:
    at the same time the ranks work on sentences of about equal length.
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
