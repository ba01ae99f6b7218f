"""The ring of the key queue, K live and B pending rows: writing keys and ending a global step."""

from __future__ import annotations

import torch
from torch import Tensor

from ppa_fast.ops.checks import check
from ppa_fast.ops.library import operation
from ppa_fast.ops.reference import ring as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

_enqueue = operation(
    "enqueue(Tensor keys, Tensor groups, Tensor step_indices, Tensor(a!) ring, Tensor(b!) ring_groups,"
    " Tensor(c!) state) -> ()",
    reference=reference.enqueue,
    fake=lambda keys, groups, step_indices, ring, ring_groups, state: None,
)
_commit = operation(
    "commit(Tensor(a!) state, int written, int size, int rows) -> ()",
    reference=reference.commit,
    fake=lambda state, written, size, rows: None,
)


def check_ring(ring: Tensor, ring_groups: Tensor, state: Tensor) -> None:
    """Raises unless the arguments form a ring: [R, D] of a floating dtype with R ≥ 1, int64 [R], int64 [3]."""
    check("ring", ring, DTYPES, (None, None))
    if len(ring) < 1:
        raise ValueError(f"ring: found shape {list(ring.shape)}, expected at least one row")
    check("ring_groups", ring_groups, [torch.int64], (len(ring),), like=ring)
    check("state", state, [torch.int64], (3,), like=ring)


@torch.no_grad()
def enqueue(
    keys: Tensor, groups: Tensor, step_indices: Tensor, ring: Tensor, ring_groups: Tensor, state: Tensor
) -> None:
    """Writes each key to the ring's pending row (cursor + step index) mod R, and to no other row.

    Keys with an element that is not finite (in the ring's dtype) and keys without a pending row (step index outside
    [0, R − count)) are refused. They are not written; ``state[2]`` counts them on the device. Writing the same key
    twice to a row is harmless.

    Args:
        keys: [M, D], fp32 or ring's dtype, rounded to nearest. groups: int64 [M]. step_indices: int64 [M].
        ring: [R, D], fp32, bf16 or fp16. ring_groups: int64 [R].
        state: int64 [3], on the device: cursor (the first pending row), count (live rows, before it), refused keys.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
    """
    check_ring(ring, ring_groups, state)
    check("keys", keys, [torch.float32, ring.dtype], (None, ring.shape[1]), like=ring)
    check("groups", groups, [torch.int64], (len(keys),), like=ring)
    check("step_indices", step_indices, [torch.int64], (len(keys),), like=ring)
    _enqueue(keys, groups, step_indices, ring, ring_groups, state)


def commit(state: Tensor, written: int, size: int, rows: int) -> None:
    """Ends a global step on the device: its ``written`` keys (step indices 0 … written − 1) become live. If there are
    then more than ``size`` live keys, the oldest become pending.

    Args:
        state: int64 [3], as for ``enqueue``. written: 0 … R. size: K ≥ 1. rows: R ≥ K.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
    """
    check("state", state, [torch.int64], (3,))
    if size < 1:
        raise ValueError(f"size: found {size}, expected at least 1")
    if rows < size:
        raise ValueError(f"rows: found {rows}, expected at least size, {size}")
    if not 0 <= written <= rows:
        raise ValueError(f"written: found {written}, expected 0 to rows, {rows}")
    _commit(state, written, size, rows)
