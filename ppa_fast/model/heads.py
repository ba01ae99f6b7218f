"""The projection head of the sentence-level objective."""

from __future__ import annotations

from torch import nn


def projection_head(hidden: int, out: int) -> nn.Module:
    """MLP hidden → hidden → out with GELU (ours, based on MoCo v2's MLP head); the identity if ``out`` is 0.

    The caller normalizes the output.
    """
    if not out:
        return nn.Identity()
    return nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))
