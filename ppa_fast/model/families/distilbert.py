"""DistilBERT (Sanh et al., 2019)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ppa_fast.model.families.family import Family


class DistilBert(Family):
    """``DistilBertModel``."""

    def layers(self, encoder: Any) -> nn.ModuleList:
        layers: nn.ModuleList = encoder.transformer.layer
        return layers

    def layer_weights(self, config: Any) -> int:
        return int(4 * config.dim**2 + 2 * config.dim * config.hidden_dim)

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        transformed: Tensor = mlm.vocab_layer_norm(mlm.activation(mlm.vocab_transform(hidden)))
        return transformed
