"""Argument checks of the public operations, with the same messages for every backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check(
    name: str,
    tensor: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None] | None = None,
    like: Tensor | None = None,
) -> None:
    """Checks that ``tensor`` is contiguous and has one of ``dtypes``, ``shape`` (None: any size) and ``like``'s device.

    Raises:
        TypeError: not a tensor, or another dtype; the message names the argument.
        ValueError: another shape or device, or not contiguous; the message names the argument.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: found {type(tensor).__name__}, expected a tensor")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: found {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if shape is not None:
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(s is not None and s != f for s, f in zip(shape, found, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name}: found shape {list(found)}, expected [{wanted}]")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, found strides {tensor.stride()}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: found device {tensor.device}, expected {like.device}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: found {value}, expected {low} to {high}")
