"""EuroBERT (Boizard et al., 2025): rotary positions, RMSNorm, grouped-query attention, its own decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppa_fast.model.families.gated import Gated


class EuroBert(Gated):
    """``EuroBertModel``."""

    def layer_weights(self, config: Any) -> int:
        heads = 2 * (config.num_attention_heads + config.num_key_value_heads)  # queries and outputs, keys and values
        return int(config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size))

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        return hidden
