"""The sampling order: each epoch is a permutation computed from (seed, epoch) and not stored, optionally balanced
over language pairs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ppa_fast.ops.philox import STREAM_ORDER, pair_words

ROUNDS = 6


@lru_cache(maxsize=4)
def _round_keys(seed: int, epochs: tuple[int, ...], orders: tuple[int, ...]) -> NDArray[np.uint32]:
    """Returns the round keys, uint32 [ROUNDS, permutations]."""
    epoch, order, rounds = torch.tensor(epochs), torch.tensor(orders), torch.arange(ROUNDS)[:, None]
    w0, _, _, _ = pair_words(seed, epoch, order + 0 * rounds, STREAM_ORDER, rounds)
    return w0.numpy().astype(np.uint32)


def _hash(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A 32-bit integer hash: two multiply-xorshift rounds."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def permute(
    index: NDArray[np.int64],
    n: int | NDArray[np.int64],
    seed: int,
    epoch: int | NDArray[np.int64],
    order: int | NDArray[np.int64] = 0,
) -> NDArray[np.int64]:
    """Applies the epoch's permutation of 0..n-1 to ``index`` (int64 [k], values in [0, n)).

    A Feistel network over the smallest square of a power of two that is at least n, iterated until the value is below n
    (fewer than four iterations on average). It is a bijection that needs no stored table: memory does not
    depend on n, and position p of an epoch is computed without the positions before it.

    Args:
        n, epoch, order: scalars, or one value for each index (int64 [k]); n is below 2^53. ``order`` selects one of
            several permutations of the epoch.
    """
    sizes, epochs, orders = (np.broadcast_to(x, index.shape) for x in (n, epoch, order))
    bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.int64)  # bits of n - 1; exact below 2^53
    half = np.maximum(1, (bits + 1) // 2)
    low = ((1 << half) - 1).astype(np.uint32)
    count = int(orders.max(initial=0)) + 1
    named, which = np.unique(epochs * count + orders, return_inverse=True)
    keys = _round_keys(seed, tuple((named // count).tolist()), tuple((named % count).tolist()))[:, which]

    def network(value: NDArray[np.int64], at: NDArray[np.bool_] | slice) -> NDArray[np.int64]:
        left, right = (value >> half[at]).astype(np.uint32), value.astype(np.uint32) & low[at]
        for key in keys[:, at]:
            left, right = right, left ^ (_hash(right ^ key) & low[at])
        return (left.astype(np.int64) << half[at]) | right.astype(np.int64)

    value = network(np.asarray(index, dtype=np.int64), slice(None))
    while (outside := value >= sizes).any():
        value[outside] = network(value[outside], outside)
    return value


class Sampler:
    """Draws the pairs of global step s: positions s·B .. s·B+B-1 of the endless sequence of epochs.

    Every epoch draws each pair once. ``per_epoch``: draws in an epoch. A step may span several epochs; no pair is
    dropped. A draw depends only on the step, so resuming needs no state.
    """

    def __init__(self, pairs: int, batch: int, seed: int) -> None:
        self.per_epoch, self.batch, self.seed = pairs, batch, seed

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows at positions of the sequence and how often each was drawn before (all int64 [k])."""
        epochs, index = np.divmod(positions, self.per_epoch)
        return permute(index, self.per_epoch, self.seed, epochs), epochs

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows and draw counts of global step ``step``, counted from 0: two int64 [B]; see :meth:`at`."""
        return self.at(np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64))


class BalancedSampler(Sampler):
    """Draws a fixed number of pairs of each language pair in an epoch.

    The epoch's permutation determines the order of the language pairs. The t-th draw of a language pair with n rows,
    counted over all epochs, is position t mod n of permutation t div n of these rows, so n consecutive draws cover all
    n rows. t div n is how often the row was drawn before; it takes the place of the epoch in random decisions.

    Args:
        segments: int64 [S, 3], from :class:`ConcatDataset`.
        quotas: int64 [language pairs], draws of each language pair in an epoch; see :func:`quotas`.
    """

    def __init__(self, segments: NDArray[np.int64], quotas: NDArray[np.int64], batch: int, seed: int) -> None:
        super().__init__(int(quotas.sum()), batch, seed)
        self._quotas, self._quota_ends = quotas, np.cumsum(quotas)
        index, first, end = segments[np.argsort(segments[:, 0], kind="stable")].T
        self._first, self._ends = first, np.cumsum(end - first)  # by segment, grouped by language pair
        self._counts = np.bincount(index, end - first, len(quotas)).astype(np.int64)
        self._count_ends = np.cumsum(self._counts)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        epochs, index = np.divmod(positions, self.per_epoch)
        turn = permute(index, self.per_epoch, self.seed, epochs)
        which = np.searchsorted(self._quota_ends, turn, side="right")
        quotas, counts = self._quotas[which], self._counts[which]
        draw = epochs * quotas + turn - (self._quota_ends[which] - quotas)
        epochs, index = np.divmod(draw, counts)
        place = self._count_ends[which] - counts + permute(index, counts, self.seed, epochs, 1 + which)
        segment = np.searchsorted(self._ends, place, side="right")
        before = np.where(segment > 0, self._ends[segment - 1], 0)
        return self._first[segment] + place - before, epochs


def quotas(
    counts: NDArray[np.int64], alpha: float, cap: int | None = None, max_upsampling: float | None = None
) -> NDArray[np.int64]:
    """Returns the number of draws of each language pair in an epoch (int64 [language pairs]).

    ``counts``: int64 [language pairs], the number of pairs of each. ``counts.sum()`` draws are shared in proportion to
    ``counts ** alpha``. A share is limited to ``cap`` and to ``max_upsampling`` × its count; draws over a limit are not
    given to the others, so the proportions of the others do not change. Fractions are rounded by the largest remainder.
    """
    weights = np.where(counts > 0, counts.astype(np.float64) ** alpha, 0.0)
    shares = counts.sum() * weights / weights.sum()
    if cap is not None:
        shares = np.minimum(shares, cap)
    if max_upsampling is not None:
        shares = np.minimum(shares, np.floor(max_upsampling * counts))
    draws = np.floor(shares).astype(np.int64)
    left = round(float(shares.sum())) - int(draws.sum())
    draws[np.argsort(draws - shares, kind="stable")[:left]] += 1
    return draws
