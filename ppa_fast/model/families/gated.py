"""The layout of newer encoders: layers in ``encoder.layers``, gated feed-forward layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ppa_fast.model.families.family import Family


class Gated(Family):
    """Base of ModernBERT, EuroBERT and gte: a feed-forward layer has three weight matrices."""

    def layers(self, encoder: Any) -> nn.ModuleList:
        layers: nn.ModuleList = encoder.layers
        return layers

    def layer_weights(self, config: Any) -> int:
        return int(4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
