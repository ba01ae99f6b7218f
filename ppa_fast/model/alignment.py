"""The trained model: an encoder, its LM head for TLM, and a projection head on its sentence vector."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppa_fast.model.encoder import encoder_of, lm_decoder, lm_transform
from ppa_fast.model.families import family_of
from ppa_fast.model.forward import hidden_states, lm_logits, use_packed_attention
from ppa_fast.model.heads import projection_head
from ppa_fast.model.packed import join, pool_packed
from ppa_fast.ops.assemble import AssembledBatch, PackedSequences
from ppa_fast.ops.masked_lm_loss import masked_lm_loss


class LMLoss(nn.Module):
    """The LM head's last layer and the loss in one forward; uses the decoder's own parameters.

    This is a module because ZeRO-3 gathers weights only for the forward and backward of the module that has them.
    Outside the decoder's forward, its weights are not available.
    """

    def __init__(self, decoder: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = decoder.weight, decoder.bias

    def forward(self, transformed: Tensor, labels: Tensor) -> Tensor:
        """The sum of the losses (fp32 scalar) for masked positions ``transformed`` [M, H] and ``labels`` int64 [M]."""
        return masked_lm_loss(transformed, self.weight, self.bias, labels)


class AlignmentModel(nn.Module):
    """The query encoder with its two heads; a copy of it serves as the momentum encoder.

    Parameters are named ``mlm.<name in the Hugging Face model>`` and ``projection.<…>``. The projection is frozen if
    there is no contrast.

    Args:
        mlm: a masked language model, or an encoder without TLM.
        pooling: "cls" or "mean".
        projection_dim: D, width of the projected vectors; 0 disables the projection; D is then the encoder's
            width.
        tlm: whether to train TLM. contrast: the sentence-level objective, one of ``settings.CONTRASTS`` or None.
        bf16_products: compute matrix products in bf16 (autocast), for any dtype of the weights.
        contrast_layer: the layer of the sentence vectors; None is the last. TLM always uses the last.
    """

    def __init__(
        self,
        mlm: PreTrainedModel,
        pooling: str,
        projection_dim: int,
        tlm: bool = True,
        contrast: str | None = "moco",
        bf16_products: bool = False,
        contrast_layer: int | None = None,
    ) -> None:
        super().__init__()
        use_packed_attention(mlm)
        self.mlm = mlm
        self.projection = projection_head(mlm.config.hidden_size, projection_dim)
        self.pooling, self.tlm, self.contrast, self.bf16_products = pooling, tlm, contrast, bf16_products
        self.contrast_layer = contrast_layer
        if tlm and family_of(mlm.config).packed:
            self.lm_loss = LMLoss(lm_decoder(mlm))  # shares the head's parameters, which keep their names
        if not contrast:
            self.projection.requires_grad_(False)

    def _vectors(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        return F.normalize(self.projection(pool_packed(hidden, cu_seqlens, self.pooling)).float(), dim=1)

    def project(self, sentences: PackedSequences) -> Tensor:
        """Unit vectors fp32 [S, D] of sentences: pooled, projected, normalized."""
        with self._autocast(sentences.tokens.device):
            hidden = hidden_states(encoder_of(self.mlm), sentences, self.contrast_layer)
            return self._vectors(hidden, sentences.cu_seqlens)

    def _autocast(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16) if self.bf16_products else nullcontext()

    def forward(self, batch: AssembledBatch, tlm: bool = True) -> tuple[Tensor, Tensor]:
        """Runs the trained encoder for a step: with MoCo on the last layer, one forward over TLM pairs and query
        sentences; otherwise one over the sentences of the contrast, then one over TLM pairs.

        A forward of sentences alone runs first, so that its dropout does not depend on TLM.

        Args:
            tlm: False skips TLM in this call.

        Returns:
            The sum of the TLM losses over the batch's masked positions (fp32 scalar), and sentence vectors (fp32, unit
            rows): [N, D] for the queries, or [2 N, D] for the queries and keys. Disabled objectives return zeros and
            cost nothing.
        """
        with self._autocast(batch.labels.device):
            return self._forward(batch, tlm and self.tlm)

    def _tlm_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        if family_of(self.mlm.config).packed:
            return self.lm_loss(lm_transform(self.mlm, hidden), labels)
        return F.cross_entropy(lm_logits(self.mlm, hidden).float(), labels, reduction="sum")

    def _forward(self, batch: AssembledBatch, tlm: bool) -> tuple[Tensor, Tensor]:
        encoder, zero = encoder_of(self.mlm), torch.zeros((), device=batch.labels.device)
        tlm_loss, vectors = zero, zero.expand(len(batch.is_swapped), 1)
        shared = self.contrast == "moco" and self.contrast_layer is None
        if self.contrast and not shared:
            vectors = self.project(batch.query if self.contrast == "moco" else join(batch.query, batch.key))
        streams = [batch.tlm] * tlm + [batch.query] * shared
        if not streams:
            return tlm_loss, vectors
        parts = hidden_states(encoder, join(*streams)).split([len(s.tokens) for s in streams])
        if tlm:
            tlm_loss = self._tlm_loss(parts[0].index_select(0, batch.masked_positions), batch.labels)
        if shared:
            vectors = self._vectors(parts[-1], batch.query.cu_seqlens)
        return tlm_loss, vectors
