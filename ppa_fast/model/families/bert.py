"""BERT (Devlin et al., NAACL 2019), mBERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppa_fast.model.families.family import Family


class Bert(Family):
    """``BertModel``."""

    def self_attention(self, layer: Any) -> Any:
        return layer.attention.self

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        transformed: Tensor = mlm.cls.predictions.transform(hidden)
        return transformed
