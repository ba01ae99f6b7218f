"""The last layer of the language-model head and its softmax cross-entropy, at the masked positions."""

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
"""Replaces logits [M, S] by their gradient and returns the losses, fp32 [M]; bias [S], labels int64 [M].

A row has ``vocab_size`` logits and padding (not read, set to 0) up to S, a multiple of 64, and starts at a 16-byte
address. Without padding nearly every row of 119,547 would be unaligned. ``bias`` has the logits' dtype and the same
padding. A label out of range raises RuntimeError on the CPU. On CUDA, where the check would synchronize, its loss is
NaN and its gradient 0.
"""

_PADDED_TO = 64
_LEAST_ROWS = 1024


class _MaskedLmLoss(torch.autograd.Function):
    """With one chunk, the gradient of the logits is kept for the backward pass. With several chunks, the forward pass
    computes the gradients of the arguments chunk by chunk, and the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, budget_bytes: int, train: bool
    ) -> Tensor:
        rows, vocab_size = len(hidden), len(weight)
        stride = -(-vocab_size // _PADDED_TO) * _PADDED_TO
        chunks = max(1, math.ceil(rows / max(_LEAST_ROWS, budget_bytes // (stride * hidden.element_size()))))
        chunk = math.ceil(rows / chunks)
        ctx.single_chunk = train and chunks == 1
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
        if ctx.single_chunk:
            ctx.save_for_backward(buffer[:, :vocab_size], hidden, weight)
        else:
            d_weight, d_bias = (None if d is None else d.to(weight.dtype) for d in (d_weight, d_bias))
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.single_chunk:
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
    """The sum over rows of ``−log softmax(hidden_i · weightᵀ + bias)[label_i]``, an fp32 scalar; 0 for no rows.

    Differentiable once, with respect to ``hidden``, ``weight`` and ``bias``. Logits are computed chunk by chunk and
    replaced by their gradient in place. A single chunk is kept for the backward pass; several chunks share one buffer.

    Under autocast the arguments are cast to the autocast dtype; the loss is always fp32.

    Args:
        hidden: fp32, bf16 or fp16 [M, H].
        weight: [V, H], the dtype of ``hidden``.
        bias: [V], the dtype of ``hidden``, or None.
        labels: int64 [M], in [0, V).
        budget_bytes: maximum size of one chunk's logits. A chunk has at least 1,024 rows, because smaller matrix
            products are inefficient and each chunk reads and writes the gradient of ``weight``. The default fits 4,490
            rows of mBERT's 119,547 bf16 logits: one chunk for most micro-batches, in 1 % of an accelerator's memory.

    Raises:
        TypeError, ValueError: invalid argument; the message names it.
        RuntimeError: label out of range, on the CPU. On CUDA the loss is then NaN, and the row adds no gradient.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    check("hidden", hidden, [torch.float32, torch.bfloat16, torch.float16], (None, None))
    check("weight", weight, [hidden.dtype], (None, hidden.shape[1]), like=hidden)
    if bias is not None:
        check("bias", bias, [hidden.dtype], (len(weight),), like=hidden)
    check("labels", labels, [torch.int64], (len(hidden),), like=hidden)
    check_range("budget_bytes", budget_bytes, 1, math.inf)
    loss: Tensor = _MaskedLmLoss.apply(hidden, weight, bias, labels, budget_bytes, torch.is_grad_enabled())
    return loss
