"""RoBERTa (Liu et al., 2019), XLM-R (Conneau et al., ACL 2020), and others with this layout."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ppa_fast.model.families.family import Family


class Roberta(Family):
    """``RobertaModel``. The first rows of its position table are never read."""

    def first_position(self, config: Any) -> int:
        return int(config.pad_token_id) + 1

    def self_attention(self, layer: Any) -> Any:
        return layer.attention.self

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        transformed: Tensor = mlm.lm_head.layer_norm(F.gelu(mlm.lm_head.dense(hidden)))
        return transformed
