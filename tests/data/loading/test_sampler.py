"""The order of the pairs: permutations without a table, consecutive epochs, sampling across language pairs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.data.loading.sampler import BalancedSampler, Sampler, permute, quotas


def order(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n, dtype=np.int64), n, seed, epoch)


def is_permutation(rows: np.ndarray, n: int) -> bool:
    return rows.dtype == np.int64 and np.array_equal(np.sort(rows), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 65_535, 65_536, 65_537])
def test_permute_is_a_bijection_for_any_size(n):
    for seed, epoch in ((0, 0), (1, 7), (2**40 + 3, 123_456)):
        assert is_permutation(order(n, seed, epoch), n)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**33), 2**33), epoch=st.integers(0, 2**31))
def test_permute_is_a_bijection_for_any_seed_and_epoch(n, seed, epoch):
    assert is_permutation(order(n, seed, epoch), n)


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(1, 60), batch=st.integers(1, 70), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_epochs_are_consecutive_permutations_for_any_batch(pairs, batch, steps, seed):
    """Over all steps, every epoch has every pair once, and an epoch starts when the previous one ends."""
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


def test_samples_depend_only_on_the_step():
    sampler, other = Sampler(1000, 16, seed=5), Sampler(1000, 16, seed=5)
    later = [other.draw(step) for step in (200, 3, 77)]
    for step, (rows, epochs) in zip((200, 3, 77), later, strict=True):
        for _ in range(2):
            assert np.array_equal(sampler.draw(step)[0], rows)
            assert np.array_equal(sampler.draw(step)[1], epochs)


def test_arguments_are_not_modified():
    index = np.arange(5, dtype=np.int64)
    permute(index, 5, 0, 0)
    assert index.tolist() == [0, 1, 2, 3, 4]


def test_seed_and_epoch_determine_the_order():
    orders = {(seed, epoch): order(1000, seed, epoch) for seed in range(4) for epoch in range(4)}
    assert np.array_equal(order(1000, 2, 3), orders[2, 3])
    assert np.array_equal(order(1000, 2 + 2**32, 3), orders[2, 3])  # the key contains the seed mod 2^32
    keys = list(orders)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            # Two random permutations agree in one place on average, Poisson: more than 12 has probability 1e-10.
            assert (orders[one] == orders[other]).sum() <= 12, (one, other)


def test_values_are_distributed_evenly_over_positions():
    """Chi-square of the counts of (tenth of the positions, tenth of the values) over 60 permutations of 1000."""
    counts = np.zeros((10, 10))
    for epoch in range(60):
        np.add.at(counts, (np.arange(1000) // 100, order(1000, 11, epoch) // 100), 1)
    # Rows and columns have fixed sums: 81 degrees of freedom; 5 sigma of a chi-square is 5 * sqrt(2 * 81).
    expected = counts.sum() / 100
    statistic = ((counts - expected) ** 2 / expected).sum() * 999 / 1000
    assert abs(statistic - 81) < 5 * np.sqrt(2 * 81)


@pytest.mark.parametrize("n", [997, 1024, 5000])
def test_values_do_not_correlate_with_neighbours_or_positions(n):
    """Pearson's r of ranks has standard deviation 1/sqrt(n - 1) for a random permutation."""
    for epoch in range(8):
        rows = order(n, 4, epoch).astype(float)
        limit = 5 / np.sqrt(n - 1)
        assert abs(np.corrcoef(np.arange(n), rows)[0, 1]) < limit
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < limit
        following = order(n, 4, epoch + 1).astype(float)
        assert abs(np.corrcoef(rows, following)[0, 1]) < limit


@pytest.mark.parametrize("n", [3, 5])
def test_every_permutation_of_a_few_pairs_occurs(n):
    seen = {tuple(order(n, seed, 0)) for seed in range(1500)}
    assert len(seen) == {3: 6, 5: 120}[n]


def test_a_trillion_pairs_need_no_memory():
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


# Several permutations at once.


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_vectorised_permutations_equal_single_ones(data, seed):
    """Each index has its own size, epoch and order; sizes go up to 2^40."""
    size = st.one_of(st.integers(1, 40), st.integers(2**31, 2**40))
    drawn = data.draw(st.lists(st.tuples(size, st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=20))
    n, epoch, which = np.array(drawn, np.int64).T
    index = np.array([data.draw(st.integers(0, size - 1)) for size in n.tolist()], np.int64)
    single = [
        permute(np.array([i]), int(one), seed, int(e), int(w))[0]
        for i, one, e, w in zip(index, n, epoch, which, strict=True)
    ]
    assert permute(index, n, seed, epoch, which).tolist() == single


def test_different_orders_of_an_epoch_do_not_correlate():
    orders = [permute(np.arange(1000), 1000, 0, 3, which) for which in range(5)]
    assert np.array_equal(orders[0], order(1000, 0, 3))
    for i, one in enumerate(orders):
        assert is_permutation(one, 1000)
        assert all((one == other).sum() <= 12 for other in orders[i + 1 :])


# Sampling across language pairs.


counts_of = st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any)


@settings(max_examples=100, deadline=None)
@given(counts_of, st.floats(0, 1))
def test_shares_are_proportional_to_the_power_of_the_size(counts, alpha):
    counts = np.array(counts)
    drawn = quotas(counts, alpha)
    assert drawn.dtype == np.int64
    assert drawn.sum() == counts.sum()
    weights = np.array([float(n) ** alpha if n else 0.0 for n in counts.tolist()])
    assert (np.abs(drawn - counts.sum() * weights / weights.sum()) < 1).all()
    assert ((drawn > 0) == (counts > 0)).all()  # none is missing


@settings(max_examples=100, deadline=None)
@given(counts_of)
def test_alpha_1_samples_each_pair_once(counts):
    assert quotas(np.array(counts), 1.0).tolist() == counts
    assert quotas(np.array(counts), 1.0, cap=1000, max_upsampling=1.0).tolist() == counts


@settings(max_examples=100, deadline=None)
@given(counts_of, st.floats(0, 1), st.integers(1, 400), st.floats(1, 5))
def test_limits_apply_and_do_not_change_the_other_language_pairs(counts, alpha, cap, often):
    counts = np.array(counts)
    free, drawn = quotas(counts, alpha), quotas(counts, alpha, cap, often)
    limits = np.minimum(cap, np.floor(often * counts))
    assert (drawn <= limits).all()
    assert ((drawn > 0) == (counts > 0)).all()
    below = free < limits
    assert (np.abs(drawn - free)[below] <= 1).all()
    assert (drawn >= limits - 1)[free > limits].all()


def test_quotas_equal_known_values():
    counts = np.array([1_000_000, 10_000, 100])
    assert quotas(counts, 0.5).tolist() == [910_000, 91_000, 9_100]  # 1000 : 100 : 10 of 1,010,100
    assert quotas(counts, 0.0).tolist() == [336_700] * 3
    assert quotas(counts, 0.5, max_upsampling=10).tolist() == [910_000, 91_000, 1_000]
    assert quotas(counts, 1.0, cap=5_000).tolist() == [5_000, 5_000, 100]
    assert quotas(np.array([10**10, 3, 10**10 + 1]), 1.0).tolist() == [10**10, 3, 10**10 + 1]


SEGMENTS = np.array([[1, 0, 7], [0, 7, 12], [1, 12, 15], [2, 15, 16], [0, 16, 20]])  # 9, 10 and 1 rows of 20
LANGUAGE = np.array([1] * 7 + [0] * 5 + [1] * 3 + [2] + [0] * 4)


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    batch=st.integers(1, 70),
    seed=st.integers(0, 99),
    epochs=st.integers(1, 6),
)
def test_epochs_sample_language_pairs_by_quota_and_rows_in_turn(drawn, batch, seed, epochs):
    sampler = BalancedSampler(SEGMENTS, np.array(drawn), batch, seed)
    assert sampler.per_epoch == sum(drawn)
    steps = -(-epochs * sum(drawn) // batch)
    rows, own = (np.concatenate(c)[: epochs * sum(drawn)] for c in zip(*map(sampler.draw, range(steps)), strict=True))
    languages = LANGUAGE[rows].reshape(epochs, -1)
    for index, (count, quota) in enumerate(zip((9, 10, 1), drawn, strict=True)):
        assert ((languages == index).sum(1) == quota).all()
        # Each language pair has epochs of its own: complete ones have all rows once, the last one has some rows once.
        mine = LANGUAGE[rows] == index
        times = np.bincount(own[mine])
        assert times.tolist() == np.bincount(np.arange(epochs * quota) // count).tolist()
        for epoch in range(len(times)):
            found = rows[mine & (own == epoch)]
            assert len(set(found.tolist())) == len(found)
    # The samples of a row are numbered 0, 1, …; the last epoch of its language pair may not have reached the row yet.
    for row in set(rows.tolist()):
        numbers = np.sort(own[rows == row])
        assert len(set(numbers.tolist())) == len(numbers)
        assert numbers[-1] <= len(numbers)


def test_the_batch_does_not_change_the_sequence():
    drawn = np.array([5, 30, 11])
    sequences = []
    for batch in (1, 7, 46, 100):
        sampler = BalancedSampler(SEGMENTS, drawn, batch, 3)
        rows, own = (np.concatenate(c)[:300] for c in zip(*map(sampler.draw, range(-(-300 // batch))), strict=True))
        sequences.append((rows.tolist(), own.tolist()))
    assert all(sequence == sequences[0] for sequence in sequences)


def test_language_pairs_are_spread_over_the_epoch_and_have_different_orders():
    segments = np.array([[0, 0, 1000], [1, 1000, 2000]])
    sampler = BalancedSampler(segments, np.array([500, 1500]), 2000, 7)
    rows, _ = sampler.draw(0)
    second = (rows >= 1000).reshape(20, 100).sum(1)
    assert (np.abs(second - 75) < 5 * np.sqrt(100 * 0.75 * 0.25)).all()
    assert not np.array_equal(rows, sampler.draw(1)[0])
    both = BalancedSampler(segments, np.array([1000, 2000]), 3000, 7).draw(0)[0]
    place = {row: i for i, row in enumerate(both.tolist())}
    orders = [sorted(range(1000), key=lambda row, first=first: place[row + first]) for first in (0, 1000)]
    assert abs(np.corrcoef(*orders)[0, 1]) < 5 / np.sqrt(1000)


def test_a_billion_pairs_of_a_hundred_languages_need_no_memory():
    sizes = np.logspace(3, 9, 100).astype(np.int64)
    ends = np.cumsum(sizes)
    segments = np.stack([np.arange(100), ends - sizes, ends], 1)
    tracemalloc.start()
    try:
        sampler = BalancedSampler(segments, quotas(sizes, 0.3), 256, seed=1)
        rows, own = sampler.draw(10**6)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert rows.min() >= 0
    assert rows.max() < ends[-1]
    assert own[rows < 1000].min(initial=10**9) > 1000  # the smallest are sampled many times
