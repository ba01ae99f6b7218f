"""Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

Every random decision of the method is a pure function of (seed, epoch, pair, position): it does not depend on batch
composition, order, rank, device or restart. NumPy's Philox is the 4x64 variant and PyTorch's orders its counter
differently, so neither is this one.
"""

from __future__ import annotations

import torch
from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57  # Random123's multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # and Weyl key increments
MASK32 = 0xFFFFFFFF

STREAM_MASKING = 0  # position: the token's index in the TLM sequence
STREAM_COIN = 1  # position 0: which side is the query
# stream 2 belongs to code-switched fine-tuning
STREAM_ORDER = 3  # position 0..: round keys of an epoch's permutation
STREAM_TORCH = 4  # seeds of torch's own generator: dropout, new weights, random warm-up


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors that hold uint32 values, broadcastable with each other and with the key.
        key: two int64 tensors that hold uint32 values.

    Returns:
        Four int64 tensors w0..w3 of the broadcast shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, but the bits are those of the unsigned product: shift and mask give its high half.
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
    """The four words of ``(position, stream)`` of a pair in an epoch.

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


def torch_seed(seed: int, step: int, number: int) -> int:
    """A seed for torch's generator from (seed, step, micro-batch number): 64 bits of stream 4.

    Dropout is drawn after seeding with it before every micro-batch, so no generator state needs saving.
    """
    at, zero = torch.tensor(step), torch.zeros((), dtype=torch.int64)
    w0, w1, _, _ = pair_words(seed, zero, at, STREAM_TORCH, zero + number)
    return int(w0) << 32 | int(w1)


def threshold(probability: float) -> int:
    """T(p) = floor(p * 2^32) in double: a uint32 word is below it with probability p (every word is below T(1))."""
    return int(probability * 2.0**32)
