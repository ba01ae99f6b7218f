"""The projection head of the sentence-level objective."""

from __future__ import annotations

from torch import nn


def projection_head(hidden: int, out: int) -> nn.Sequential:
    """MLP hidden → hidden → out with GELU (ours; after MoCo v2's MLP head). The output is normalised by the caller."""
    return nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))
