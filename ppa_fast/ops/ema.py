"""The momentum update (MoCo: He et al., CVPR 2020, equation 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ppa_fast.ops.checks import check, check_range
from ppa_fast.ops.library import operation
from ppa_fast.ops.reference import ema as reference

_ema = operation(
    "ema_(Tensor(a!)[] masters, Tensor[] sources, Tensor(b!)[] working, float momentum) -> ()",
    reference=reference.ema_,
    fake=lambda masters, sources, working, momentum: None,
)


@torch.no_grad()
def ema_(masters: list[Tensor], sources: list[Tensor], working: list[Tensor], momentum: float) -> None:
    """Updates ``k ← fmaf(m, k, (1 − m)·q)`` in place, elementwise in fp32, and the working copy of k, in one pass.

    ``m`` is rounded to fp32 once. ``1 − m`` is computed in double and rounded once. All backends agree bit for bit, and
    so do partitioned and full buffers. In bf16 this update would have no effect: 1 − m = 0.001 is below half an ulp.

    Args:
        masters: fp32, any shapes, contiguous; the momentum encoder's weights k.
        sources: fp32, the masters' shapes; the query encoder's weights q.
        working: empty, or a copy of each master in fp32, bf16 or fp16, rounded to nearest.
        momentum: m in [0, 1].

    Raises:
        TypeError, ValueError: invalid argument; the message names it.
    """
    check_range("momentum", momentum, 0.0, 1.0)
    if len(sources) != len(masters):
        raise ValueError(f"sources: found {len(sources)} tensors, expected {len(masters)}, one per master")
    if working and len(working) != len(masters):
        raise ValueError(f"working: found {len(working)} tensors, expected none or {len(masters)}")
    for i, k in enumerate(masters):
        check(f"masters[{i}]", k, [torch.float32], like=masters[0])
        check(f"sources[{i}]", sources[i], [torch.float32], k.shape, like=k)
        if working:
            check(f"working[{i}]", working[i], [torch.float32, torch.bfloat16, torch.float16], k.shape, like=k)
    _ema(masters, sources, working, momentum)
