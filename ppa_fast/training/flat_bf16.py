"""DeepSpeed's bf16 optimizer of ZeRO stage 1, on flat tensors. Only ``zero`` and this module use DeepSpeed's internals.

Tested with DeepSpeed 0.19.8. If a new version differs, ``tests/training/test_zero.py`` fails first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


def flatten(engine: Any) -> None:
    """Turns an engine's ``BF16_Optimizer`` into a :class:`FlatBF16Optimizer`, in place; ignores other optimizers."""
    optimizer = engine.optimizer
    if type(optimizer) is BF16_Optimizer:
        optimizer.__class__ = FlatBF16Optimizer
        optimizer.sent = engine.communication_data_type
        engine.enable_backward_allreduce = False


class FlatBF16Optimizer(BF16_Optimizer):
    """DeepSpeed's stage 1 optimizer with bf16 weights and fp32 gradient sums, in few kernel launches per step.

    DeepSpeed adds, measures and clips gradients one parameter at a time, although a group's gradients are in one flat
    buffer. It sums them over the ranks with an all-reduce, although each rank needs only its own partition; a
    reduce-scatter sends half as much. ``sent``: the dtype of gradients in communication.
    """

    sent: torch.dtype

    @torch.no_grad()
    def update_hp_grads(self, clear_lp_grads: bool = False) -> None:
        """Adds a micro-batch's bf16 gradients to the fp32 sums; those of the first micro-batch are copied."""
        copied: tuple[list[Tensor], list[Tensor]] = [], []
        added: tuple[list[Tensor], list[Tensor]] = [], []
        for parameters, sums, has_sum in zip(
            self.bf16_groups, self.fp32_groups_gradients, self.fp32_groups_has_gradients, strict=True
        ):
            for i, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    targets, gradients = added if has_sum[i] else copied
                    targets.append(sums[i])
                    gradients.append(parameter.grad.view(-1))
                    has_sum[i] = True
        if copied[0]:
            torch._foreach_copy_(*copied)
        if added[0]:
            torch._foreach_add_(*added)
        self.clear_lp_grads()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Averages the gradients over the ranks, clips, steps, and updates the bf16 weights on every rank.

        If the gradient norm is not finite, sets ``overflow`` and changes no weights.
        """
        gradients, world = self.fp32_groups_gradient_flat_partition, dist.get_world_size()
        if world > 1:
            for full, part in zip(self.fp32_groups_gradients_flat, gradients, strict=True):
                received = torch.empty_like(part, dtype=self.sent)
                dist.reduce_scatter_tensor(received, full.to(self.sent))
                torch.div(received, world, out=part)
        square = torch.stack([torch.linalg.vector_norm(part) for part in gradients]).square().sum()
        if world > 1:
            dist.all_reduce(square)
        norm = float(square.sqrt())
        self._global_grad_norm, self.overflow = norm, not math.isfinite(norm)
        if not self.overflow:
            scale = self.clip_grad / (norm + 1e-6)
            if 0 < scale < 1:
                torch._foreach_mul_(gradients, scale)
            for master, gradient in zip(self.fp32_groups_flat_partition, gradients, strict=True):
                master.grad = gradient
            self.optimizer.step()
            self.update_lp_params()
        self.clear_hp_grads()

    def clear_lp_grads(self, set_to_none: bool = True) -> None:
        """Sets gradients to None, so that autograd stores its result instead of adding it to zeros."""
        super().clear_lp_grads(set_to_none=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the parameters' gradients only; ``step`` has cleared the sums."""
        self.clear_lp_grads()
