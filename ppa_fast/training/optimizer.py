"""AdamW with skippable steps and an L2 pull to the initial weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, ICLR 2019) that can skip a step and pull weights to their initial values.

    ``skip``: whether :meth:`step` does nothing. ``anchors``: for each optimized tensor, views of it and the values that
    these are pulled to. The pull is decoupled like the weight decay: ``p ← p + lr·λ·(p₀ − p)`` before the update, with
    λ = ``strength``.
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
    """Fused AdamW over the trainable parameters; no weight decay on 1-D parameters (biases and LayerNorm)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=epsilon, fused=True)
