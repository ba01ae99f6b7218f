"""AdamW with what training here asks of it: state from the start, steps that are sat out, an anchor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019) that can sit out a step and pull weights to where they started.

    ``skip``: whether :meth:`step` does nothing. ``anchors``: for an optimized tensor, views of it and the values that
    they are pulled to. Decoupled like the weight decay: ``p ← p + lr·λ·(p₀ − p)`` before the update, λ = ``strength``.
    """

    skip = False
    strength = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.anchors: dict[Tensor, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.skip:
            return
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor in self.anchors:
                    torch._foreach_lerp_(*self.anchors[tensor], group["lr"] * self.strength)
        super().step(closure)


def optimizer_for(model: nn.Module, decay: float, lr: float, betas: tuple[float, float], epsilon: float) -> AdamW:
    """AdamW (fused) over the trainable parameters; no weight decay on biases and LayerNorm (all that is 1-D)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=epsilon, fused=True)
