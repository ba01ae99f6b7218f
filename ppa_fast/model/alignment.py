"""The model that is trained: a masked language model and a projection head over its encoder's sentence vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppa_fast.model.encoder import encoder_of, lm_decoder, lm_head_of, lm_transform
from ppa_fast.model.heads import projection_head
from ppa_fast.model.packed import ATTENTION, join, packed_hidden, pool_packed
from ppa_fast.ops.assemble import Assembled, Stream
from ppa_fast.ops.masked_lm_loss import masked_lm_loss


class LMLoss(nn.Module):
    """The LM head's last layer and the loss after it, in one forward with the decoder's own parameters.

    A module, because what shares weights among ranks (ZeRO-3) gathers them for the forward and the backward of the
    module that holds them; read past its decoder's forward, they would not be there.
    """

    def __init__(self, decoder: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = decoder.weight, decoder.bias

    def forward(self, transformed: Tensor, labels: Tensor) -> Tensor:
        """The sum of the losses (fp32 scalar) of masked rows ``transformed`` [M, H] with ``labels`` int64 [M]."""
        return masked_lm_loss(transformed, self.weight, self.bias, labels)


class AlignmentModel(nn.Module):
    """The query encoder with its two heads; a copy of it serves as the momentum encoder.

    Parameters are named ``mlm.<name in the Hugging Face model>`` and ``projection.<…>``. What no objective trains is
    frozen: the LM head's own weights without TLM, the projection without MoCo.

    Args:
        mlm: of one of ``encoder.FAMILIES``.
        pooling: "cls" or "mean".
        projection_dim: D, width of the projected vectors.
        tlm, moco: which objectives are on.
    """

    def __init__(
        self, mlm: PreTrainedModel, pooling: str, projection_dim: int, tlm: bool = True, moco: bool = True
    ) -> None:
        super().__init__()
        mlm.set_attn_implementation(ATTENTION)
        self.mlm = mlm
        self.lm_loss = LMLoss(lm_decoder(mlm))  # its parameters are the head's, and keep their names
        self.projection = projection_head(mlm.config.hidden_size, projection_dim)
        self.pooling, self.tlm, self.moco = pooling, tlm, moco
        if not tlm:
            shared = {id(p) for p in encoder_of(mlm).parameters()}
            for parameter in lm_head_of(mlm).parameters():
                if id(parameter) not in shared:
                    parameter.requires_grad_(False)
        if not moco:
            self.projection.requires_grad_(False)

    def _vectors(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        return F.normalize(self.projection(pool_packed(hidden, cu_seqlens, self.pooling)).float(), dim=1)

    def project(self, sentences: Stream) -> Tensor:
        """Unit vectors fp32 [S, D] of sentences: pooled, projected, normalised."""
        return self._vectors(packed_hidden(encoder_of(self.mlm), sentences), sentences.cu_seqlens)

    def forward(self, batch: Assembled) -> tuple[Tensor, Tensor]:
        """The query encoder's part of the step: one forward of the encoder over TLM pairs and query sentences.

        Returns:
            The sum of the TLM losses of the batch's masked rows (fp32 scalar) and the query vectors (fp32 [N, D], unit
            rows). What is switched off comes back as zeros, without cost.
        """
        streams = [batch.tlm] * self.tlm + [batch.query] * self.moco
        parts = packed_hidden(encoder_of(self.mlm), join(*streams)).split([len(s.tokens) for s in streams])
        zero = torch.zeros((), device=batch.labels.device)
        tlm_loss, query = zero, zero.expand(len(batch.swap), 1)
        if self.tlm:
            transformed = lm_transform(self.mlm, parts[0].index_select(0, batch.masked_rows))
            tlm_loss = self.lm_loss(transformed, batch.labels)
        if self.moco:
            query = self._vectors(parts[-1], batch.query.cu_seqlens)
        return tlm_loss, query
