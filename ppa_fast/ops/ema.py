"""The momentum update (MoCo, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def ema_(master: Tensor, source: Tensor, momentum: float) -> None:
    """In place ``k ← fmaf(m, k, (1 − m)·q)``, elementwise in fp32.

    ``m`` is rounded to fp32 once; ``1 − m`` is computed in double and rounded once. ``torch.add`` with ``alpha`` fuses
    the multiply into the add, on CPU and CUDA alike (a test holds it to fmaf bit for bit), so partitioned and full
    buffers agree exactly. In bf16 this update would stand still: 1 − m = 0.001 is below half a bf16 ulp.

    Args:
        master: fp32, the momentum encoder's k. source: fp32, same shape, the query encoder's q. momentum: m in [0, 1].
    """
    master.copy_(torch.add(source * (1.0 - momentum), master, alpha=momentum))
