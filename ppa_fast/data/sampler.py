"""The order of the pairs: consecutive epochs, each a permutation computed from (seed, epoch), without a table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ppa_fast.ops.philox import STREAM_ORDER, pair_words

ROUNDS = 6


@lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> NDArray[np.uint32]:
    none = torch.zeros(ROUNDS, dtype=torch.int64)
    w0, _, _, _ = pair_words(seed, none + epoch, none, STREAM_ORDER, torch.arange(ROUNDS))
    return w0.numpy().astype(np.uint32)


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """An integer hash of 32 bits: two multiply-xorshift rounds."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def permute(index: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the epoch's permutation of 0..n-1 sends ``index`` (int64, any shape, values in [0, n)).

    A Feistel network over the smallest square of a power of two that holds n, walked until the value is below n again
    (fewer than four times on average): a bijection without a table, so that ten million pairs or ten billion cost the
    same memory, and position p of an epoch is found without drawing the ones before it.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = np.uint32((1 << half) - 1)
    keys = _round_keys(seed, epoch)

    def network(value: NDArray[np.int64]) -> NDArray[np.int64]:
        left, right = (value >> half).astype(np.uint32), value.astype(np.uint32) & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return (left.astype(np.int64) << half) | right.astype(np.int64)

    value = network(np.asarray(index, dtype=np.int64))
    while (outside := value >= n).any():
        value[outside] = network(value[outside])
    return value


class Sampler:
    """Draws the pairs of global step s: positions s·B .. s·B+B-1 of the endless sequence of epochs.

    A step may span two epochs (or more, when the corpus is smaller than a batch); nothing is dropped. A draw is a
    function of the step alone, so resuming needs no state.
    """

    def __init__(self, pairs: int, batch: int, seed: int) -> None:
        self.pairs, self.batch, self.seed = pairs, batch, seed

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and epochs (both int64) at these positions of the sequence."""
        epochs, index = np.divmod(positions, self.pairs)
        rows = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permute(index[here], self.pairs, self.seed, int(epoch))
        return rows, epochs

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and epochs (both int64 [B]) of global step ``step``, counted from 0, in the order they were drawn."""
        return self.at(np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64))
