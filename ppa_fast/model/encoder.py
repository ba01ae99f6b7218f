"""Hugging Face encoders: loading, the parts that training needs, and sentence vectors.

Nothing here runs code from a checkpoint: ``trust_remote_code`` is always off, weights come from safetensors, or (old
hub checkpoints) from ``pytorch_model.bin`` through torch's restricted unpickler.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from ppa_fast.errors import UserError
from ppa_fast.hub import load_pretrained
from ppa_fast.progress import Progress

if TYPE_CHECKING:
    from ppa_fast.data.encode import SpecialIds

FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("bert", "cls"),
    "roberta": ("roberta", "lm_head"),
    "xlm-roberta": ("roberta", "lm_head"),
}
"""Families that can be trained: ``model_type`` → (attribute of the encoder, attribute of the LM head)."""

POOLINGS = ("cls", "mean")

# RoBERTa's kin number positions from pad_id + 1, so that many rows of the position table are never read.
_POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "mpnet", "data2vec-text"}


def missing_weights(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """Of the names that a checkpoint lacked, those whose tensor did not come under another (tied) name; sorted."""
    tensors = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return sorted(name for name in missing if name not in tensors or id(tensors[name]) not in loaded)


def load_config(name_or_dir: str | Path) -> PretrainedConfig:
    """The configuration of a model of one of ``FAMILIES``; raises UserError for others and as ``load_pretrained``."""
    config = load_pretrained(AutoConfig, name_or_dir)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{name_or_dir}: model type {config.model_type!r} cannot be trained; expected one of {', '.join(FAMILIES)}"
        )
    return config


def load_masked_lm(name_or_dir: str | Path) -> PreTrainedModel:
    """A masked language model of one of ``FAMILIES``: fp32, SDPA attention, on the CPU, in eval mode.

    Raises UserError for another family, an absent or broken folder, and a checkpoint without its MLM head.
    """
    config = load_config(name_or_dir)
    model, info = load_pretrained(
        AutoModelForMaskedLM,
        name_or_dir,
        dtype=torch.float32,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    missing = missing_weights(model, info["missing_keys"])
    head = FAMILIES[config.model_type][1]
    if any(name.startswith(f"{head}.") for name in missing):
        raise UserError(
            f"{name_or_dir}: the MLM head is missing ({missing[0]} and {len(missing) - 1} more weights); "
            "expected a checkpoint saved with its masked-language-model head"
        )
    if missing:
        raise UserError(
            f"{name_or_dir}: the checkpoint lacks {len(missing)} encoder weights, the first is {missing[0]}"
        )
    return model


def load_encoder(name_or_dir: str | Path) -> PreTrainedModel:
    """Any encoder that ``AutoModel`` knows, without a head: fp32, on the CPU, in eval mode.

    A checkpoint without pooler is fine (no pooler is read here). Raises UserError for an absent or broken folder, an
    encoder-decoder, and a checkpoint that lacks other weights of the encoder.
    """
    config = load_pretrained(AutoConfig, name_or_dir)
    if config.is_encoder_decoder:
        raise UserError(f"{name_or_dir}: {config.model_type!r} is an encoder-decoder; expected an encoder")
    model, info = load_pretrained(AutoModel, name_or_dir, dtype=torch.float32, output_loading_info=True)
    missing = [name for name in missing_weights(model, info["missing_keys"]) if not name.startswith("pooler.")]
    if missing:
        raise UserError(
            f"{name_or_dir}: the checkpoint lacks {len(missing)} encoder weights, the first is {missing[0]}"
        )
    return model


def encoder_of(mlm: PreTrainedModel) -> nn.Module:
    """The encoder inside a masked language model of one of ``FAMILIES``."""
    return getattr(mlm, FAMILIES[mlm.config.model_type][0])


def lm_head_of(mlm: PreTrainedModel) -> nn.Module:
    """The LM head inside a masked language model of one of ``FAMILIES``: hidden states [..., H] → logits [..., V]."""
    return getattr(mlm, FAMILIES[mlm.config.model_type][1])


def lm_transform(mlm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The LM head up to its last layer: hidden states [..., H] → [..., H]."""
    head: Any = lm_head_of(mlm)
    if mlm.config.model_type == "bert":
        transformed: Tensor = head.predictions.transform(hidden)
    else:
        transformed = head.layer_norm(F.gelu(head.dense(hidden)))
    return transformed


def lm_decoder(mlm: PreTrainedModel) -> nn.Linear:
    """The LM head's last layer, H → V; its weight is that of the input embeddings where the model ties them."""
    head: Any = lm_head_of(mlm)
    decoder: nn.Linear = head.predictions.decoder if mlm.config.model_type == "bert" else head.decoder
    return decoder


def max_sequence(config: PretrainedConfig) -> int:
    """The longest sequence in tokens, specials included, that has a position for each.

    ``sys.maxsize`` for an architecture without a table of positions.
    """
    positions: int = getattr(config, "max_position_embeddings", sys.maxsize)
    if config.model_type in _POSITIONS_AFTER_PAD:
        positions -= config.pad_token_id + 1
    return positions


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Sentence vectors [B, H] of the type of ``hidden`` [B, L, H], the output of an encoder layer.

    ``mask`` [B, L] (bool or integer) is 1 at tokens and 0 at padding. ``cls`` takes the first token's vector (the
    paper's choice), ``mean`` the mean over all tokens of the sentence, specials included, summed in fp32. Raises
    UserError for another ``pooling``.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling != "mean":
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    total = (hidden * mask.unsqueeze(-1)).sum(1, dtype=torch.float32)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)


def _check_request(encoder: nn.Module, rows: Sequence[Sequence[int]], pooling: str, layer: int | None) -> None:
    config: Any = encoder.config
    if pooling not in POOLINGS:
        raise UserError(f"pooling: found {pooling!r}, expected one of {', '.join(POOLINGS)}")
    if layer is not None and not 0 <= layer <= config.num_hidden_layers:
        raise UserError(
            f"layer: found {layer}, expected 0 (the embeddings) to {config.num_hidden_layers} (the last layer)"
        )
    longest, limit = max(map(len, rows), default=0), max_sequence(config)
    if longest + 2 > limit:
        raise UserError(f"a sentence has {longest} tokens and two specials; the model has {limit} positions")


def _batches(rows: Sequence[Sequence[int]], tokens_per_batch: int) -> Iterator[list[int]]:
    """Row numbers, longest rows first, in batches of at most ``tokens_per_batch`` padded tokens (at least one row)."""
    batch: list[int] = []
    width = 0
    for row in sorted(range(len(rows)), key=lambda row: -len(rows[row])):
        if batch and (len(batch) + 1) * width > tokens_per_batch:
            yield batch
            batch = []
        if not batch:
            width = len(rows[row]) + 2
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def sentence_vectors(
    encoder: nn.Module,
    rows: Sequence[Sequence[int]],
    special: SpecialIds,
    pooling: str,
    layer: int | None = None,
    device: torch.device | str | None = None,
    tokens_per_batch: int = 16384,
    progress: str | None = None,
) -> Tensor:
    """Vectors fp32 [N, H] on the CPU of N rows of token ids (without special tokens), in the rows' order.

    Each row is read as ``[CLS] row [SEP]``; an empty row is just that. ``layer`` is the layer whose output is pooled:
    None the last, 0 the embeddings, 1 … L the layers. Ids are put on ``device``, by default the encoder's. A batch
    holds at most ``tokens_per_batch`` tokens, padding included. ``progress`` is the title of a progress bar. The
    encoder runs in eval mode; the mode of each of its modules is as before afterwards.

    Raises UserError for an unknown pooling, a layer out of range, and rows longer than the encoder's positions.
    """
    _check_request(encoder, rows, pooling, layer)
    target = torch.device(device) if device is not None else next(encoder.parameters()).device
    config: Any = encoder.config
    vectors = torch.empty(len(rows), config.hidden_size)
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with Progress(progress or "", len(rows), "sentences", enabled=progress is not None) as bar:
            for batch in _batches(rows, tokens_per_batch):
                ids = torch.full((len(batch), len(rows[batch[0]]) + 2), special.pad)
                mask = torch.zeros_like(ids)
                for i, row in enumerate(batch):
                    tokens = [special.cls, *rows[row], special.sep]
                    ids[i, : len(tokens)] = torch.tensor(tokens)
                    mask[i, : len(tokens)] = 1
                ids, mask = ids.to(target), mask.to(target)
                output = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=layer is not None)
                hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
                vectors[batch] = pool(hidden.float(), mask, pooling).cpu()
                bar.update(len(batch))
    finally:
        for module, training in modes:
            module.training = training
    return vectors
