"""gte (Zhang et al., 2024): rotary positions, a gated feed-forward layer. In transformers since 5.23."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ppa_fast.model.families.gated import Gated


class Gte(Gated):
    """``GteModel``."""

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        transformed: Tensor = mlm.lm_head.layer_norm(F.gelu(mlm.lm_head.dense(hidden)))
        return transformed
