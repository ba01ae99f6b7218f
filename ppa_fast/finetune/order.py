"""The order of the training examples: shuffled, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ppa_fast.ops.philox import torch_seed

POOL = 50  # batches that are sorted by length together: little padding, and still 1,600 examples to mix


def steps_of(examples: int, batch: int) -> int:
    """The steps of an epoch: its last batch is filled up with examples from its beginning."""
    return -(-examples // batch)


def epoch_order(lengths: Tensor, batch: int, seed: int, epoch: int) -> Tensor:
    """The numbers of examples with ``lengths`` [N] in the order of an epoch: int64 [steps · batch].

    A random permutation, cut into pools of ``POOL`` batches, each sorted by length and cut into batches, which are then
    shuffled. Every example is there; those that fill up the last batch are there twice, so that steps have one size
    whatever the number of ranks.
    """
    generator = torch.Generator().manual_seed(torch_seed(seed, epoch, 0))
    total = steps_of(len(lengths), batch) * batch
    order = torch.randperm(len(lengths), generator=generator)
    order = order.repeat(-(-total // len(order)))[:total]
    pools = order.split(POOL * batch)
    batches = torch.cat([pool[lengths[pool].argsort(descending=True, stable=True)] for pool in pools]).view(-1, batch)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


class Order(Sampler[tuple[int, int]]):
    """(epoch, number of the example) for all epochs, one after the other; ``lengths[epoch]`` integers [N]."""

    def __init__(self, lengths: list[Tensor], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed = lengths, batch, seed

    def __len__(self) -> int:
        return sum(steps_of(len(lengths), self.batch) for lengths in self.lengths) * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch, lengths in enumerate(self.lengths):
            for number in epoch_order(lengths, self.batch, self.seed, epoch).tolist():
                yield epoch, number
