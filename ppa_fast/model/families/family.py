"""The interface of an encoder family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """Differences between encoders of transformers, by model type. The defaults are for BERT's layout.

    ``name``, ``models`` (well-known ones) and ``notes`` are documentation: docs/encoders.md. ``packed``: whether the
    family supports sequences without padding. The layers must then call the registered attention function, and the
    encoder must use the given positions.
    """

    name: str
    models: str
    notes: str = ""
    packed: ClassVar[bool] = True

    def first_position(self, config: Any) -> int:
        """The first position number of a sequence."""
        return 0

    def layers(self, encoder: Any) -> nn.ModuleList:
        """The encoder's layers, lowest first; empty if they cannot be told apart."""
        layers: nn.ModuleList = encoder.encoder.layer
        return layers

    def layer_weights(self, config: Any) -> int:
        """The number of elements in a layer's weight matrices."""
        hidden: int = config.hidden_size
        return 4 * hidden**2 + 2 * hidden * config.intermediate_size

    def self_attention(self, layer: Any) -> Any:
        """A layer's self-attention if its three products can be fused, else None.

        The module has the linear layers ``query``, ``key``, ``value`` and ``attention_head_size``, ``scaling``,
        ``dropout``. Its forward returns the heads' output.
        """
        return None

    def lm_transform(self, mlm: Any, hidden: Tensor) -> Tensor:
        """The LM head of a masked language model up to its last layer: hidden states [..., H] → [..., H]."""
        raise NotImplementedError
