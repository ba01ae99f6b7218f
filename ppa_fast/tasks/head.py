"""Loads an encoder with a new task head."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import check_complete, encoder_config, missing_weights
from ppa_fast.ops.philox import torch_seed

POOLER = "pooler."


def _initialise(module: nn.Module, std: float, seed: int) -> None:
    """Draws the weights of linear layers from N(0, std²), as in BERT, and sets their biases to 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0.0, std, generator=generator)
            if layer.bias is not None:
                layer.bias.data.zero_()


def load_with_head(name_or_dir: str | Path, auto: str, labels: tuple[str, ...], seed: int) -> PreTrainedModel:
    """An encoder with a new head, in fp32 on the CPU.

    The head's initial weights depend only on ``seed`` and their shapes, not on the encoder or earlier random draws, so
    that compared encoders start from the same head. The same holds for the pooler if the checkpoint has none. A head in
    the checkpoint is replaced.

    Args:
        auto: name of transformers' Auto class for the task.
        labels: the classes in the order of the outputs; empty if the task has none.

    Raises UserError for a missing or broken folder, an architecture without such a head, an encoder-decoder, and a
    checkpoint with missing encoder weights.
    """
    config = encoder_config(name_or_dir)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    model, info = load_pretrained(
        getattr(transformers, auto),
        name_or_dir,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    encoder = f"{model.base_model_prefix}."
    names = missing_weights(model, info["missing_keys"])
    missing = [name.removeprefix(encoder) for name in names if name.startswith(encoder)]
    check_complete(name_or_dir, [name for name in missing if not name.startswith(POOLER)])
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            _initialise(module, config.initializer_range, torch_seed(seed, 0, 0))
    if missing:
        _initialise(model.base_model.pooler, config.initializer_range, torch_seed(seed, 0, 1))
    return model
