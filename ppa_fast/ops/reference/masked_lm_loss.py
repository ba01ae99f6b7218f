"""The softmax cross-entropy of rows of logits, with the gradient in place."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def cross_entropy_(logits: Tensor, bias: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """See ``ops.masked_lm_loss``. Computes the softmax in fp32, or in fp64 for fp64 logits."""
    bad = (labels < 0) | (labels >= vocab_size)
    if labels.device.type == "cpu" and bad.any():
        row = int(bad.nonzero()[0])
        raise RuntimeError(f"labels: row {row} has {int(labels[row])}, expected 0 to {vocab_size - 1}")
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_softmax = (logits[:, :vocab_size].to(wide) + bias[:vocab_size]).log_softmax(1)
    label = labels.masked_fill(bad, 0).unsqueeze(1)
    loss = -log_softmax.gather(1, label).squeeze(1)
    gradient = log_softmax.exp_().scatter_add_(1, label, torch.full_like(label, -1.0, dtype=wide))
    logits[:, :vocab_size] = gradient.masked_fill_(bad.unsqueeze(1), 0.0)
    logits[:, vocab_size:] = 0.0
    return loss.masked_fill_(bad, torch.nan)
