"""An encoder with a new head for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ppa_fast.errors import UserError
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import missing_weights
from ppa_fast.ops.philox import torch_seed

POOLER = "pooler."


def _initialise(module: nn.Module, std: float, seed: int) -> None:
    """Draws each linear layer's weights from N(0, std²), as BERT's are, and sets its bias to 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0.0, std, generator=generator)
            if layer.bias is not None:
                layer.bias.data.zero_()


def load_with_head(name_or_dir: str | Path, auto: Any, labels: tuple[str, ...], seed: int) -> PreTrainedModel:
    """An encoder with a new head: fp32, on the CPU.

    The head's initial weights depend on ``seed`` and its shapes alone, neither on the encoder nor on what else was
    drawn before: fine-tuned encoders that are compared start from one head. So does the pooler of a checkpoint that
    has none. A head that the checkpoint holds is replaced.

    Args:
        auto: transformers' Auto class of the task.
        labels: the classes in the order of the outputs; none where the task has none.

    Raises UserError for an absent or broken folder, an architecture without such a head, an encoder-decoder, and a
    checkpoint that lacks weights of the encoder.
    """
    config = load_pretrained(AutoConfig, name_or_dir)
    if config.is_encoder_decoder:
        raise UserError(f"{name_or_dir}: {config.model_type!r} is an encoder-decoder; expected an encoder")
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    model, info = load_pretrained(
        auto, name_or_dir, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    encoder = f"{model.base_model_prefix}."
    names = missing_weights(model, info["missing_keys"])
    missing = [name.removeprefix(encoder) for name in names if name.startswith(encoder)]
    if wrong := [name for name in missing if not name.startswith(POOLER)]:
        raise UserError(f"{name_or_dir}: the checkpoint lacks {len(wrong)} encoder weights, the first is {wrong[0]}")
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            _initialise(module, config.initializer_range, torch_seed(seed, 0, 0))
    if missing:
        _initialise(model.base_model.pooler, config.initializer_range, torch_seed(seed, 0, 1))
    return model
