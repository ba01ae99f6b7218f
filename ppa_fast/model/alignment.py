"""The model that is trained: a masked language model and a projection head over its encoder's sentence vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppa_fast.model.encoder import encoder_of, lm_decoder, lm_head_of, lm_transform, max_sequence, pool
from ppa_fast.model.heads import projection_head
from ppa_fast.ops.assemble import Assembled, Stream
from ppa_fast.ops.masked_lm_loss import masked_lm_loss


class AlignmentModel(nn.Module):
    """The query encoder with its two heads; a copy of it serves as the momentum encoder.

    Parameters are named ``mlm.<name in the Hugging Face model>`` and ``projection.<…>``. What no objective trains is
    frozen: the LM head's own weights without TLM, the projection without MoCo.

    Args:
        mlm: of one of ``encoder.FAMILIES``.
        pad: id of the padding token.
        pooling: "cls" or "mean".
        projection_dim: D, width of the projected vectors.
        tlm, moco: which objectives are on.
    """

    def __init__(
        self, mlm: PreTrainedModel, pad: int, pooling: str, projection_dim: int, tlm: bool = True, moco: bool = True
    ) -> None:
        super().__init__()
        self.mlm = mlm
        self.projection = projection_head(mlm.config.hidden_size, projection_dim)
        self.pad, self.pooling, self.tlm, self.moco = pad, pooling, tlm, moco
        # XLM-R numbers positions from pad_id + 1. They are passed explicitly: transformers counts tokens that are not
        # padding, and masking may draw the padding id as a random token.
        self.first_position = mlm.config.max_position_embeddings - max_sequence(mlm.config)
        if not tlm:
            shared = {id(p) for p in encoder_of(mlm).parameters()}
            for parameter in lm_head_of(mlm).parameters():
                parameter.requires_grad_(id(parameter) in shared)
        if not moco:
            self.projection.requires_grad_(False)

    def hidden(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """The encoder's last layer over a stream, padded: [S, L, H], and the mask, bool [S, L]."""
        ids, mask = stream.padded(self.pad)
        positions = torch.arange(ids.shape[1], device=ids.device) + self.first_position
        encoder = encoder_of(self.mlm)
        output = encoder(input_ids=ids, attention_mask=mask, position_ids=positions.expand_as(ids))
        return output.last_hidden_state, mask

    def project(self, sentences: Stream) -> Tensor:
        """Unit vectors fp32 [S, D] of sentences: pooled, projected, normalised."""
        hidden, mask = self.hidden(sentences)
        return F.normalize(self.projection(pool(hidden, mask, self.pooling)).float(), dim=1)

    def forward(self, batch: Assembled) -> tuple[Tensor, Tensor]:
        """The query encoder's part of the step.

        Returns:
            The sum of the TLM losses of the batch's masked rows (fp32 scalar) and the query vectors (fp32 [N, D], unit
            rows). What is switched off comes back as zeros, without cost.
        """
        zero = torch.zeros((), device=batch.labels.device)
        tlm_loss, query = zero, zero.expand(len(batch.swap), 1)
        if self.tlm:
            hidden, _ = self.hidden(batch.tlm)
            rows = batch.masked_rows
            selected = hidden[batch.tlm.sequence[rows], batch.tlm.positions[rows]]
            # The decoder's weights are read past its forward: what gathers them there (ZeRO-3) has to know.
            decoder = lm_decoder(self.mlm)
            transformed = lm_transform(self.mlm, selected)
            tlm_loss = masked_lm_loss(transformed, decoder.weight, decoder.bias, batch.labels)
        if self.moco:
            query = self.project(batch.query)
        return tlm_loss, query
