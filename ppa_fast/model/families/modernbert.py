"""ModernBERT (Warner et al., 2024), mmBERT (Marone et al., 2025): rotary positions, local attention in most layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppa_fast.model.families.gated import Gated


class ModernBert(Gated):
    """``ModernBertModel``. Its layers compute query, key and value in one product and pass the window."""

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        transformed: Tensor = mlm.head(hidden)
        return transformed
