"""The order of the pairs: permutations without a table, epochs end to end."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.data.sampler import Sampler, permute


def order(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n, dtype=np.int64), n, seed, epoch)


def is_permutation(rows: np.ndarray, n: int) -> bool:
    return rows.dtype == np.int64 and np.array_equal(np.sort(rows), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 65_535, 65_536, 65_537])
def test_a_bijection(n):
    for seed, epoch in ((0, 0), (1, 7), (2**40 + 3, 123_456)):
        assert is_permutation(order(n, seed, epoch), n)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**33), 2**33), epoch=st.integers(0, 2**31))
def test_a_bijection_for_any_seed_and_epoch(n, seed, epoch):
    assert is_permutation(order(n, seed, epoch), n)


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(1, 60), batch=st.integers(1, 70), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_epochs_are_consecutive_permutations_whatever_the_batch(pairs, batch, steps, seed):
    """Over all steps in order: every epoch draws every pair once, and no epoch starts before the last one ended."""
    sampler = Sampler(pairs, batch, seed)
    draws = [sampler.draw(step) for step in range(steps)]
    assert all(rows.shape == epochs.shape == (batch,) for rows, epochs in draws)
    rows, epochs = (np.concatenate(column) for column in zip(*draws, strict=True))
    assert np.array_equal(epochs, np.arange(steps * batch) // pairs)
    for epoch in range(epochs[-1] + 1):
        drawn = rows[epochs == epoch]
        assert np.array_equal(drawn, order(pairs, seed, epoch)[: len(drawn)])
        assert len(set(drawn.tolist())) == len(drawn)
        assert epoch == epochs[-1] or is_permutation(drawn, pairs)


def test_a_step_spans_two_epochs():
    rows, epochs = Sampler(pairs=10, batch=4, seed=3).draw(2)
    assert epochs.tolist() == [0, 0, 1, 1]
    assert rows.tolist() == [*order(10, 3, 0)[8:], *order(10, 3, 1)[:2]]


def test_a_step_spans_several_epochs_of_a_corpus_smaller_than_the_batch():
    rows, epochs = Sampler(pairs=3, batch=8, seed=0).draw(1)
    assert epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(rows[1:4]) == sorted(rows[4:7]) == [0, 1, 2]


def test_a_draw_is_a_function_of_the_step_alone():
    sampler, other = Sampler(1000, 16, seed=5), Sampler(1000, 16, seed=5)
    later = [other.draw(step) for step in (200, 3, 77)]
    for step, (rows, epochs) in zip((200, 3, 77), later, strict=True):
        for _ in range(2):
            assert np.array_equal(sampler.draw(step)[0], rows)
            assert np.array_equal(sampler.draw(step)[1], epochs)


def test_arguments_are_left_alone():
    index = np.arange(5, dtype=np.int64)
    permute(index, 5, 0, 0)
    assert index.tolist() == [0, 1, 2, 3, 4]


def test_seeds_and_epochs_name_the_order():
    orders = {(seed, epoch): order(1000, seed, epoch) for seed in range(4) for epoch in range(4)}
    assert np.array_equal(order(1000, 2, 3), orders[2, 3])
    assert np.array_equal(order(1000, 2 + 2**32, 3), orders[2, 3])  # the key holds the seed mod 2^32
    keys = list(orders)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            # Two random permutations agree in one place on average, Poisson: more than 12 has probability 1e-10.
            assert (orders[one] == orders[other]).sum() <= 12, (one, other)


def test_values_are_spread_evenly_over_positions():
    """Chi-square of the counts of (tenth of the positions, tenth of the values) over 60 permutations of 1000."""
    counts = np.zeros((10, 10))
    for epoch in range(60):
        np.add.at(counts, (np.arange(1000) // 100, order(1000, 11, epoch) // 100), 1)
    # Rows and columns have fixed sums: 81 degrees of freedom; 5 sigma of a chi-square is 5 * sqrt(2 * 81).
    expected = counts.sum() / 100
    statistic = ((counts - expected) ** 2 / expected).sum() * 999 / 1000
    assert abs(statistic - 81) < 5 * np.sqrt(2 * 81)


@pytest.mark.parametrize("n", [997, 1024, 5000])
def test_neighbours_and_values_are_not_correlated(n):
    """Pearson's r of ranks has standard deviation 1/sqrt(n - 1) for a random permutation."""
    for epoch in range(8):
        rows = order(n, 4, epoch).astype(float)
        limit = 5 / np.sqrt(n - 1)
        assert abs(np.corrcoef(np.arange(n), rows)[0, 1]) < limit
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < limit
        following = order(n, 4, epoch + 1).astype(float)
        assert abs(np.corrcoef(rows, following)[0, 1]) < limit


@pytest.mark.parametrize("n", [3, 5])
def test_every_order_of_a_few_pairs_occurs(n):
    seen = {tuple(order(n, seed, 0)) for seed in range(1500)}
    assert len(seen) == {3: 6, 5: 120}[n]


def test_a_trillion_pairs_cost_no_memory():
    n, batch = 10**12, 64
    tracemalloc.start()
    try:
        sampler = Sampler(n, batch, seed=1)
        rows, epochs = sampler.draw((n - batch // 2) // batch)
        many = sampler.at(np.arange(10_000, dtype=np.int64) * 99_999_999)[0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert rows.min() >= 0
    assert many.max() < n
    assert many.min() >= 0
    assert len(np.unique(many)) == len(many)
    # Uniform over the range: a mean of 10,000 draws has standard deviation n / sqrt(12 * 10,000).
    assert abs(many.mean() - n / 2) < 5 * n / np.sqrt(12 * 10_000)
    assert epochs.tolist() == (np.arange(batch) + (n - batch // 2) // batch * batch >= n).tolist()
