"""Hugging Face encoders: loading, and the parts that training needs.

Nothing here runs code from a checkpoint: ``trust_remote_code`` is always off, weights come from safetensors, or (old
hub checkpoints) from ``pytorch_model.bin`` through torch's restricted unpickler.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from ppa_fast.errors import UserError
from ppa_fast.hub import load_pretrained

FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("bert", "cls"),
    "roberta": ("roberta", "lm_head"),
    "xlm-roberta": ("roberta", "lm_head"),
}
"""Families that can be trained: ``model_type`` → (attribute of the encoder, attribute of the LM head)."""

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


def freeze_layers(mlm: PreTrainedModel, count: int) -> None:
    """Freezes the embeddings (with them an LM decoder that is tied to them) and the first ``count`` layers; 0: nothing.

    Lower layers carry what languages share already; freezing them is a guard against forgetting (and spares their
    backward pass).
    """
    encoder: Any = encoder_of(mlm)
    if count:
        for module in (encoder.embeddings, *encoder.encoder.layer[:count]):
            module.requires_grad_(False)


def checkpoint_activations(mlm: PreTrainedModel) -> None:
    """Lets the encoder's layers keep their input only; backward computes the rest again, with the same dropout."""
    enable: Any = getattr(mlm, "activation_checkpointing_enable", None)  # its name since transformers 5.23
    (enable or mlm.gradient_checkpointing_enable)({"use_reentrant": False})
    # It makes the embeddings' output need a gradient, for reentrant checkpoints: frozen layers would go backward too.
    mlm.disable_input_require_grads()


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
