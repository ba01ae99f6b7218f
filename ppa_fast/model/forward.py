"""An encoder's hidden states over packed sequences: unpadded if its family supports it, else as a padded batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ppa_fast.model.encoder import encoder_of, first_layers
from ppa_fast.model.families import family_of
from ppa_fast.model.packed import ATTENTION, packed_hidden
from ppa_fast.ops.assemble import PackedSequences


def hidden_states(encoder: nn.Module, stream: PackedSequences, layer: int | None = None) -> Tensor:
    """A layer's output [T, H] over packed sequences; uses :func:`packed_hidden` if the attention is :data:`ATTENTION`.

    ``layer``: None the last, 0 the embeddings, 1 … L the layers. The layers above are not computed, and the output is
    that of an encoder without them: a family's norm after the last layer is applied. Exception: if the layers cannot be
    told apart, the output is transformers' ``hidden_states[layer]``.
    """
    config: Any = encoder.config
    if layer is not None and family_of(config).layers(encoder):
        with first_layers(encoder, layer):
            return hidden_states(encoder, stream)
    if config._attn_implementation == ATTENTION:
        return packed_hidden(encoder, stream)
    pad = config.pad_token_id if config.pad_token_id is not None else 0  # some model types derive positions from it
    ids, mask = stream.padded(pad)
    output = encoder(input_ids=ids.long(), attention_mask=mask.long(), output_hidden_states=layer is not None)
    hidden: Tensor = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return hidden[mask]


def use_packed_attention(model: PreTrainedModel) -> None:
    """Makes :func:`hidden_states` run without padding, if the model's family supports it; in place."""
    if family_of(model.config).packed:
        model.set_attn_implementation(ATTENTION)


def lm_logits(mlm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Applies the LM head of any masked language model: hidden states [M, H] → logits [M, V]."""
    encoder = encoder_of(mlm)

    def given(*_: Any, inputs_embeds: Tensor, **options: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)

    encoder.forward = given  # replaces the forward of this module only
    try:
        logits: Tensor = mlm(inputs_embeds=hidden[None]).logits.squeeze(0)
    finally:
        del encoder.forward
    return logits
