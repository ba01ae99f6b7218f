"""Shuffles training examples into batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ppa_fast.ops.philox import torch_seed

POOL = 50  # batches sorted by length together: little padding, but 1,600 examples to shuffle


def steps_of(examples: int, batch: int) -> int:
    """The number of steps of an epoch. The last batch is filled with examples from the start of the epoch."""
    return -(-examples // batch)


def epoch_order(lengths: Tensor, batch: int, seed: int, epoch: int) -> Tensor:
    """The indices of examples with ``lengths`` [N] in the order of an epoch: int64 [steps · batch].

    A random permutation is split into pools of ``POOL`` batches. Each pool is sorted by length and split into batches,
    and all batches are shuffled. Every example occurs; those that fill the last batch occur twice, so that all steps
    have the same size for any number of ranks.
    """
    generator = torch.Generator().manual_seed(torch_seed(seed, epoch, 0))
    total = steps_of(len(lengths), batch) * batch
    order = torch.randperm(len(lengths), generator=generator)
    order = order.repeat(-(-total // len(order)))[:total]
    pools = order.split(POOL * batch)
    batches = torch.cat([pool[lengths[pool].argsort(descending=True, stable=True)] for pool in pools]).view(-1, batch)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


class LengthGroupedSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, example index) for all epochs in turn. ``lengths[epoch]``: integers [N]."""

    def __init__(self, lengths: list[Tensor], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed = lengths, batch, seed

    def __len__(self) -> int:
        return sum(steps_of(len(lengths), self.batch) for lengths in self.lengths) * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch, lengths in enumerate(self.lengths):
            for number in epoch_order(lengths, self.batch, self.seed, epoch).tolist():
                yield epoch, number
