"""The order of training examples: every example, in full batches of similar lengths."""

from __future__ import annotations

import pytest
import torch

from ppa_fast.tasks.sampler import POOL, LengthGroupedSampler, epoch_order, steps_of


@pytest.mark.parametrize(("examples", "batch"), [(1, 8), (7, 8), (8, 8), (100, 8), (5000, 32)])
def test_every_example_is_present_and_every_batch_is_full(examples: int, batch: int) -> None:
    order = epoch_order(torch.randint(1, 100, (examples,)), batch, seed=0, epoch=0)
    assert len(order) == steps_of(examples, batch) * batch
    counts = order.bincount(minlength=examples)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


def test_batches_have_similar_lengths_and_random_order() -> None:
    lengths = torch.randint(1, 129, (POOL * 32 * 4,), generator=torch.Generator().manual_seed(0))
    batches = lengths[epoch_order(lengths, 32, seed=0, epoch=0)].view(-1, 32)
    spread = batches.max(1).values - batches.min(1).values
    assert spread.double().mean() < 8  # a random batch has about 120
    longest = batches.max(1).values.double()
    assert abs(torch.corrcoef(torch.stack([longest[1:], longest[:-1]]))[0, 1].item()) < 0.3


def test_the_order_depends_only_on_seed_and_epoch() -> None:
    lengths = torch.randint(1, 100, (500,))
    first = epoch_order(lengths, 16, seed=1, epoch=2)
    torch.rand(3)
    assert torch.equal(first, epoch_order(lengths, 16, seed=1, epoch=2))
    assert not torch.equal(first, epoch_order(lengths, 16, seed=1, epoch=3))
    assert not torch.equal(first, epoch_order(lengths, 16, seed=2, epoch=2))


def test_epochs_of_different_sizes_follow_each_other() -> None:
    order = LengthGroupedSampler([torch.ones(5), torch.ones(9)], batch=4, seed=0)
    items = list(order)
    assert len(items) == len(order) == 8 + 12
    assert [epoch for epoch, _ in items] == [0] * 8 + [1] * 12
    assert {number for epoch, number in items if epoch == 1} == set(range(9))
