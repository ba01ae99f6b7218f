"""The language-model head's last layer and its softmax cross-entropy, on the masked rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppa_fast.ops.checks import check, check_range
from ppa_fast.ops.library import operation
from ppa_fast.ops.reference import masked_lm_loss as reference

_cross_entropy = operation(
    "cross_entropy_(Tensor(a!) logits, Tensor bias, Tensor labels, int vocab_size) -> Tensor",
    reference=reference.cross_entropy_,
    fake=lambda logits, bias, labels, vocab_size: logits.new_empty(len(logits), dtype=torch.float32),
)
"""In place of logits [M, S] their gradient, and the losses fp32 [M]; bias [S], labels int64 [M].

A row is ``vocab_size`` logits and padding (not read, set to 0) up to S, a multiple of 64, at a 16-byte address: without
padding nearly every row of 119,547 would be unaligned. ``bias`` is of the logits' type and padded likewise. A label out
of range is a RuntimeError on the CPU; on CUDA, which could tell only by waiting, its loss is NaN and its gradient 0.
"""

_PADDED_TO = 64
_LEAST_ROWS = 1024


class _MaskedLmLoss(torch.autograd.Function):
    """One chunk of logits keeps their gradient for the backward pass. Of several, each computes the gradients of the
    arguments in the forward pass, while its logits are there; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, budget_bytes: int, train: bool
    ) -> Tensor:
        rows, vocab_size = len(hidden), len(weight)
        stride = -(-vocab_size // _PADDED_TO) * _PADDED_TO
        chunks = max(1, math.ceil(rows / max(_LEAST_ROWS, budget_bytes // (stride * hidden.element_size()))))
        chunk = math.ceil(rows / chunks)
        ctx.whole = train and chunks == 1
        to_hidden, to_weight, to_bias = (train and needed and chunks > 1 for needed in ctx.needs_input_grad[:3])

        padded_bias = weight.new_zeros(stride)
        if bias is not None:
            padded_bias[:vocab_size] = bias
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = hidden.new_empty(rows, dtype=wide)
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = d_bias = None
        buffer = hidden.new_empty(chunk, stride)
        for first in range(0, rows, chunk or 1):
            span = slice(first, min(first + chunk, rows))
            logits = buffer[: span.stop - first]
            real = logits[:, :vocab_size]
            torch.mm(hidden[span], weight.t(), out=real)
            losses[span] = _cross_entropy(logits, padded_bias, labels[span], vocab_size)
            if d_hidden is not None:
                torch.mm(real, weight, out=d_hidden[span])
            if to_weight:
                d_weight = _add(d_weight, torch.mm(real.t(), hidden[span]), wide)
            if to_bias:
                d_bias = _add(d_bias, real.sum(0), wide)
        if ctx.whole:
            ctx.save_for_backward(buffer[:, :vocab_size], hidden, weight)
        else:
            d_weight, d_bias = (None if d is None else d.to(weight.dtype) for d in (d_weight, d_bias))
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.whole:
            return (*(None if d is None else d * gradient for d in ctx.saved_tensors), None, None, None)
        d_logits, hidden, weight = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        return (
            torch.mm(d_logits, weight).mul_(gradient) if to_hidden else None,
            torch.mm(d_logits.t(), hidden).mul_(gradient) if to_weight else None,
            d_logits.sum(0).mul_(gradient) if to_bias else None,
            *[None] * 3,
        )


def _add(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to(dtype) if total is None else total.add_(part)


def masked_lm_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, budget_bytes: int = 1 << 30
) -> Tensor:
    """Sum over the rows of ``−log softmax(hidden_i · weightᵀ + bias)[label_i]``, an fp32 scalar; 0 for no rows.

    Differentiable once, with respect to ``hidden``, ``weight`` and ``bias``. Logits are made and turned into their
    gradient in place, chunk by chunk; a chunk that is the only one is kept for the backward pass, others are used up.

    Args:
        hidden: fp32, bf16 or fp16 [M, H]. weight: [V, H] of the same type. bias: [V] of the same type, or None.
        labels: int64 [M], in [0, V).
        budget_bytes: of the logits of one chunk, which has 1,024 rows at least: fewer would starve the matrix products,
            and each chunk passes over the gradient of ``weight``. The default holds 4,490 rows of mBERT's 119,547 bf16
            logits: one chunk for most micro-batches, in 1 % of an accelerator's memory.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.
        RuntimeError: a label out of range, on the CPU. On CUDA the loss is NaN then, and the row adds no gradient.
    """
    check("hidden", hidden, [torch.float32, torch.bfloat16, torch.float16], (None, None))
    check("weight", weight, [hidden.dtype], (None, hidden.shape[1]), like=hidden)
    if bias is not None:
        check("bias", bias, [hidden.dtype], (len(weight),), like=hidden)
    check("labels", labels, [torch.int64], (len(hidden),), like=hidden)
    check_range("budget_bytes", budget_bytes, 1, math.inf)
    loss: Tensor = _MaskedLmLoss.apply(hidden, weight, bias, labels, budget_bytes, torch.is_grad_enabled())
    return loss
