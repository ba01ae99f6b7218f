"""The momentum update (MoCo, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def ema_(masters: list[Tensor], sources: list[Tensor], working: list[Tensor], momentum: float) -> None:
    """``torch.add`` with ``alpha`` is a fused multiply-add on CPU and CUDA; a test compares it with fmaf."""
    for k, q in zip(masters, sources, strict=True):
        k.copy_(torch.add(q * (1.0 - momentum), k, alpha=momentum))
    for copy, k in zip(working, masters, strict=False):
        copy.copy_(k)
