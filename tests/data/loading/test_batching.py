"""Micro-batches: every sampled pair occurs once, and the split does not depend on the number of ranks."""

from __future__ import annotations

from dataclasses import fields
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from ppa_fast.data.loading.batching import Batches, PairBatch, StepTotals, micro_batches
from ppa_fast.data.loading.packing import Packer, packer_for
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import Store

BATCH = 24


@pytest.fixture(scope="module")
def store(tiny) -> Store:
    return Store.open(tiny.store)


@pytest.fixture(scope="module")
def packer(store) -> Packer:
    return packer_for(store, seed=9, mask_probability=0.15, input_shuffling=True)


@pytest.fixture(scope="module")
def sampler(store) -> Sampler:
    return Sampler(len(store), BATCH, seed=9)


def tensors(batch: PairBatch) -> dict[str, Tensor]:
    found = {f.name: getattr(part, f.name) for part in (batch, batch.layout) for f in fields(part)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def tokens(batch: PairBatch) -> Tensor:
    """Tokens that the encoders read for each pair."""
    return 2 * (batch.a_offsets.diff() + batch.b_offsets.diff()) + 7


def same(one: PairBatch, other: PairBatch) -> bool:
    numbers = (one.number, one.totals, one.sizes) == (other.number, other.totals, other.sizes)
    return numbers and all(
        torch.equal(a, b) for a, b in zip(tensors(one).values(), tensors(other).values(), strict=True)
    )


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 4), (2, 12), (2, 3), (3, 4), (4, 1)])
@pytest.mark.parametrize("step", [0, 12, 13])  # 300 pairs: step 12 is half epoch 0, half epoch 1
def test_the_ranks_together_have_the_sampled_pairs(store, packer, sampler, world, micro, step):
    ranks = [Batches(packer, sampler, micro, rank, world)(step) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {BATCH // micro // world}  # every rank has the same number
    batches = list(chain.from_iterable(ranks))
    assert sum(len(batch) for batch in batches) == BATCH  # `micro` pairs on average
    positions = torch.cat([batch.step_indices for batch in batches])
    order = positions.argsort()
    assert positions[order].tolist() == list(range(BATCH))
    rows, epochs = sampler.draw(step)
    assert torch.cat([batch.pair_ids for batch in batches])[order].tolist() == rows.tolist()
    assert torch.cat([batch.epochs for batch in batches])[order].tolist() == epochs.tolist()
    assert (len(set(epochs)) == 2) == (step == 12)
    groups = store.rows(rows).groups
    assert torch.cat([batch.groups for batch in batches])[order].tolist() == groups.tolist()


def test_micro_batches_are_sorted_by_length_and_ranks_get_similar_lengths(packer, sampler):
    parts = {b.number: b for rank in range(2) for b in Batches(packer, sampler, 4, rank, 2)(3)}
    assert sorted(parts) == list(range(6))
    joined = torch.cat([tokens(parts[number]) for number in range(6)]).tolist()
    assert joined == sorted(joined)
    assert joined[0] < joined[-1]
    assert [b.number for b in Batches(packer, sampler, 4, 1, 2)(3)] == [1, 3, 5]
    # Micro-batches have nearly equal numbers of tokens, which equal numbers of pairs would not give.
    sums = [int(tokens(part).sum()) for part in parts.values()]
    assert max(sums) - sum(joined) / 6 <= joined[-1]
    assert len(parts[0]) > len(parts[5])


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_split_does_not_depend_on_the_ranks(packer, sampler, world):
    alone = {batch.number: batch for batch in Batches(packer, sampler, 4, 0, 1)(5)}
    for rank in range(world):
        for batch in Batches(packer, sampler, 4, rank, world)(5):
            assert same(batch, alone[batch.number])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_the_totals_of_the_step(packer, sampler, world):
    ranks = [Batches(packer, sampler, 4, rank, world)(2) for rank in range(world)]
    totals = {batch.totals for batch in chain.from_iterable(ranks)}
    assert len(totals) == 1
    (total,) = totals
    assert total.masked == sum(batch.layout.masked for batch in chain.from_iterable(ranks)) > 0
    text = sum(len(batch.a_tokens) + len(batch.b_tokens) for batch in chain.from_iterable(ranks))
    assert total.text_tokens == text > 0
    assert total.pairs_by_rank(world) == [sum(map(len, batches)) for batches in ranks]


def test_pairs_by_rank():
    assert StepTotals(0, 0, (5, 4, 3, 2, 1, 1)).pairs_by_rank(2) == [9, 7]


def test_a_batch_is_one_buffer(packer, sampler):
    (batch,) = Batches(packer, sampler, BATCH, 0, 1)(1)
    spans = []
    for name, tensor in tensors(batch).items():
        assert tensor.untyped_storage().data_ptr() == batch.buffer.data_ptr()
        if name != "buffer":
            begin = tensor.data_ptr() - batch.buffer.data_ptr()
            spans.append((begin, begin + tensor.nbytes))
            assert begin % 16 == 0
    spans.sort()
    assert len(spans) == 10
    assert all(0 <= begin - end < 16 for (_, end), (begin, _) in zip([(0, 0), *spans], spans, strict=False))
    assert 0 <= len(batch.buffer) - spans[-1][1] < 16


def test_to_moves_the_buffer_and_keeps_the_rest(packer):
    rows = np.array([4, 2], np.int64)
    (batch,) = micro_batches(packer, rows, rows * 0 + 3, 1)
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
    assert all(
        moved.shape == tensor.shape
        for moved, tensor in zip(tensors(moved).values(), tensors(batch).values(), strict=True)
    )
    assert (moved.number, moved.sizes, moved.totals, len(moved)) == (batch.number, batch.sizes, batch.totals, 2)
    assert sorted(batch.pair_ids.tolist()) == [2, 4]
    assert same(batch.to(torch.device("cpu")), batch)


@pytest.mark.gpu
def test_a_pinned_batch_does_not_synchronise(packer, sampler):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (batch,) = Batches(packer, sampler, BATCH, 0, 1, pinned=True)(1)
    assert batch.buffer.is_pinned()
    assert same(batch.to(torch.device("cuda")).to(torch.device("cpu")), Batches(packer, sampler, BATCH, 0, 1)(1)[0])
