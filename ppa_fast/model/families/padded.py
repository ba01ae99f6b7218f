"""Any other encoder of transformers, run on padded batches with its own forward."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ppa_fast.model.families.family import Family

POSITIONS_AFTER_PAD = {"data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta-prelayernorm", "xmod"}
"""Model types whose positions start at pad_id + 1."""


class Padded(Family):
    """A model type without a family of its own."""

    packed: ClassVar[bool] = False

    def first_position(self, config: Any) -> int:
        return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PAD else 0

    def layers(self, encoder: Any) -> nn.ModuleList:
        """The only ModuleList with one module per layer; empty if there is none (shared weights) or several."""
        count = encoder.config.num_hidden_layers
        lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return lists[0] if len(lists) == 1 else nn.ModuleList()
