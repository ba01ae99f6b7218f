"""Softmax cross-entropy of the language-model head on the masked rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of ``−log softmax(logits_i)[label_i]`` over the rows, in fp32; 0 (with a gradient of 0) for no rows.

    Args:
        logits: [M, V]. labels: int64 [M], in [0, V).
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum")
