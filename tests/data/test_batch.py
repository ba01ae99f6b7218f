"""Micro-batches: the drawn pairs, each once, cut the same way whoever reads which part."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.data.batch import Batches, PairBatch, cut, load_pairs
from ppa_fast.data.sampler import Sampler
from ppa_fast.data.store import Store

BATCH = 24
TENSORS = [f.name for f in fields(PairBatch) if f.name != "number"]


@pytest.fixture(scope="module")
def store(tiny) -> Store:
    return Store.open(tiny.store)


@pytest.fixture(scope="module")
def sampler(store) -> Sampler:
    return Sampler(len(store), BATCH, seed=9)


def lengths(batch: PairBatch) -> list[int]:
    return (batch.a_offsets.diff() + batch.b_offsets.diff()).tolist()


def same(one: PairBatch, other: PairBatch) -> bool:
    return one.number == other.number and all(torch.equal(getattr(one, n), getattr(other, n)) for n in TENSORS)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=50), st.integers(1, 12))
def test_a_cut_holds_every_position_once_in_order_of_length(counts, parts):
    values = np.array(counts, np.int64)
    pieces = cut(values, parts)
    assert len(pieces) == parts
    assert all(piece.dtype == np.int64 for piece in pieces)
    joined = np.concatenate(pieces)
    assert sorted(joined.tolist()) == list(range(len(counts)))
    assert (np.diff(values[joined]) >= 0).all()
    # Equal lengths keep the order of their positions, so that the cut is one on every machine.
    assert all(p < q for p, q in pairwise(joined) if values[p] == values[q])
    sizes = [len(piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    if len(counts) % parts == 0:
        assert sizes == [len(counts) // parts] * parts


@pytest.mark.parametrize(("world", "micro"), [(1, 24), (1, 4), (2, 12), (2, 3), (3, 4), (4, 1)])
@pytest.mark.parametrize("step", [0, 12, 13])  # 300 pairs: step 12 is half epoch 0, half epoch 1
def test_all_ranks_together_hold_the_drawn_pairs(store, sampler, world, micro, step):
    ranks = [Batches(store, sampler, micro, rank, world)(step) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {BATCH // micro // world}  # every rank has as many
    batches = [batch for rank in ranks for batch in rank]
    assert all(len(batch) == micro for batch in batches)
    positions = torch.cat([batch.positions for batch in batches])
    order = positions.argsort()
    assert positions[order].tolist() == list(range(BATCH))
    rows, epochs = sampler.draw(step)
    assert torch.cat([batch.pair_ids for batch in batches])[order].tolist() == rows.tolist()
    assert torch.cat([batch.epochs for batch in batches])[order].tolist() == epochs.tolist()
    assert (len(set(epochs)) == 2) == (step == 12)
    groups = store.rows(rows).groups
    assert torch.cat([batch.groups for batch in batches])[order].tolist() == groups.tolist()


def test_micro_batches_are_sorted_by_length_and_ranks_get_neighbours(store, sampler):
    parts = {b.number: b for rank in range(2) for b in Batches(store, sampler, 4, rank, 2)(3)}
    assert sorted(parts) == list(range(6))
    joined = [length for number in range(6) for length in lengths(parts[number])]
    assert joined == sorted(joined)
    assert joined[0] < joined[-1]
    assert [b.number for b in Batches(store, sampler, 4, 1, 2)(3)] == [1, 3, 5]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_cut_does_not_depend_on_the_ranks(store, sampler, world):
    alone = {batch.number: batch for batch in Batches(store, sampler, 4, 0, 1)(5)}
    for rank in range(world):
        for batch in Batches(store, sampler, 4, rank, world)(5):
            assert same(batch, alone[batch.number])


def test_tokens_are_the_stores_rows(store, sampler):
    rows, _ = sampler.draw(7)
    for batch in Batches(store, sampler, 8, 0, 1)(7):
        assert batch.a_tokens.dtype == batch.b_tokens.dtype == torch.int32
        assert batch.a_offsets.dtype == batch.b_offsets.dtype == torch.int64
        for i, position in enumerate(batch.positions.tolist()):
            row = store.rows(rows[position : position + 1])
            assert batch.a_tokens[batch.a_offsets[i] : batch.a_offsets[i + 1]].tolist() == row.a_tokens.tolist()
            assert batch.b_tokens[batch.b_offsets[i] : batch.b_offsets[i + 1]].tolist() == row.b_tokens.tolist()


def test_to_moves_every_tensor_and_keeps_the_rest(store):
    rows = np.array([4, 2], np.int64)
    batch = load_pairs(store, rows, rows * 0 + 3, np.arange(2), number=5)
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}
    assert all(getattr(moved, name).shape == getattr(batch, name).shape for name in TENSORS)
    assert (moved.number, len(moved)) == (5, 2)
    assert batch.pair_ids.tolist() == [4, 2]
    assert same(batch.to(torch.device("cpu")), batch)
