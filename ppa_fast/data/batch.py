"""From a global step's pairs to the micro-batches of one rank."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppa_fast.data.sampler import Sampler
from ppa_fast.data.store import Store


@dataclass(frozen=True)
class PairBatch:
    """N pairs: what ``ops.assemble`` reads.

    ``a_tokens``, ``b_tokens``: int32 [Ta], [Tb]; ``a_offsets``, ``b_offsets``: int64 [N+1]; ``pair_ids``, ``epochs``,
    ``groups``, ``positions``: int64 [N], the last being the pair's place in the global step. ``number``: which
    micro-batch of the global step this is.
    """

    a_tokens: Tensor
    a_offsets: Tensor
    b_tokens: Tensor
    b_offsets: Tensor
    pair_ids: Tensor
    epochs: Tensor
    groups: Tensor
    positions: Tensor
    number: int

    def __len__(self) -> int:
        return len(self.pair_ids)

    def to(self, device: torch.device) -> PairBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "number"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def load_pairs(
    store: Store, rows: NDArray[np.int64], epochs: NDArray[np.int64], positions: NDArray[np.int64], number: int = 0
) -> PairBatch:
    """The pairs at these store rows, drawn for these epochs and positions (all int64 [N])."""
    read = store.rows(rows)
    return PairBatch(
        a_tokens=torch.from_numpy(read.a_tokens),
        a_offsets=torch.from_numpy(read.a_offsets),
        b_tokens=torch.from_numpy(read.b_tokens),
        b_offsets=torch.from_numpy(read.b_offsets),
        pair_ids=torch.from_numpy(read.pair_ids),
        epochs=torch.from_numpy(epochs),
        groups=torch.from_numpy(read.groups),
        positions=torch.from_numpy(positions),
        number=number,
    )


def cut(lengths: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Cuts a global step of B pairs into ``parts`` micro-batches, neighbours in length together.

    Padding to the longest of a micro-batch is what a padded forward wastes; sorted by length little is left of it. The
    cut changes no result: the objective's means are over the global step, and keys enter the queue by position.

    Args:
        lengths: [B], tokens of each pair. parts: at least 1.

    Returns:
        The positions (int64, ascending in length) of each micro-batch: B / parts of them, or, where that is no whole
        number, one more in the first ones.
    """
    return np.array_split(np.argsort(lengths, kind="stable").astype(np.int64), parts)


class Batches:
    """The micro-batches of one rank, by global step.

    With A = B / (micro-batch × world size) accumulation steps, this rank's a-th micro-batch is number a·world + rank
    of the cut, so that the ranks work on sentences of about equal length at the same time.
    """

    def __init__(self, store: Store, sampler: Sampler, micro_batch: int, rank: int, world_size: int) -> None:
        self.store, self.sampler = store, sampler
        self.parts = sampler.batch // micro_batch
        self.mine = range(rank, self.parts, world_size)

    def __call__(self, step: int) -> list[PairBatch]:
        rows, epochs = self.sampler.draw(step)
        a_lengths, b_lengths = self.store.lengths(rows)
        cuts = cut(a_lengths.astype(np.int64) + b_lengths, self.parts)
        return [load_pairs(self.store, rows[cuts[n]], epochs[cuts[n]], cuts[n], n) for n in self.mine]
