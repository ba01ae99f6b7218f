"""Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

Every random decision of the method is a pure function of (seed, epoch, pair, position): it does not depend on batch
composition, order, rank, device or restart. NumPy implements the 4x64 variant, and PyTorch orders the counter
differently, so neither can be used here.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57  # Random123's multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # Random123's Weyl key increments
MASK32 = 0xFFFFFFFF

STREAM_MASKING = 0  # position: the token's index in the TLM sequence
STREAM_COIN = 1  # position 0: which side is the query
# Stream 2 is used by code-switched fine-tuning.
STREAM_ORDER = 3  # positions from 0: round keys of an epoch's permutation
STREAM_TORCH = 4  # seeds of torch's own generator: dropout, new weights, random warm-up
STREAM_SYMMETRIC = 5  # seeds of torch's own generator: dropout of the symmetric contrast's forward

Word = TypeVar("Word", int, Tensor)


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four uint32 values, as integers or as int64 tensors that broadcast with each other and with the key.
        key: two uint32 values of the same kind.

    Returns:
        w0..w3, values in [0, 2^32); for tensors, int64 of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products overflow, but have the bits of the unsigned product; shift and mask extract its high half.
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK32) ^ c1 ^ k0,
            p1 & MASK32,
            ((p0 >> 32) & MASK32) ^ c3 ^ k1,
            p0 & MASK32,
        )
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return c0, c1, c2, c3


def pair_words(
    seed: int, epochs: Tensor, pair_ids: Tensor, stream: int, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words for ``(position, stream)`` of a pair in an epoch.

    ``key = (seed mod 2^32, epoch)``, ``counter = (position, stream, pair_id mod 2^32, pair_id >> 32)``.

    Args:
        seed: any integer.
        epochs, pair_ids, positions: int64, broadcastable.

    Returns:
        Four int64 tensors, values in [0, 2^32).
    """
    zero = torch.zeros_like(pair_ids)
    counter = (positions & MASK32, zero + stream, pair_ids & MASK32, (pair_ids >> 32) & MASK32)
    return philox4x32(counter, (zero + (seed & MASK32), epochs & MASK32))


def torch_seed(seed: int, step: int, number: int, stream: int = STREAM_TORCH) -> int:
    """A seed for torch's generator from (seed, stream, step, micro-batch number): 64 bits.

    The generator is reseeded for every micro-batch (dropout), so that no generator state needs to be saved.
    """
    counter = (number & MASK32, stream, step & MASK32, (step >> 32) & MASK32)
    w0, w1, _, _ = philox4x32(counter, (seed & MASK32, 0))
    return w0 << 32 | w1


def threshold(probability: float) -> int:
    """T(p) = floor(p * 2^32) in double. A uint32 word is below it with probability p; every word is below T(1)."""
    return int(probability * 2.0**32)
