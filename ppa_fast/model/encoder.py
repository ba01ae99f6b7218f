"""Loading Hugging Face encoders, and access to the parts that training needs.

No code from a checkpoint is run: ``trust_remote_code`` is always off, and weights are read from safetensors or, for old
hub checkpoints, from ``pytorch_model.bin`` with torch's restricted unpickler.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ppa_fast.errors import UserError
from ppa_fast.hub import load_pretrained
from ppa_fast.model.families import family_of


def missing_weights(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """The names in ``missing`` whose tensor was not loaded under another (tied) name; sorted."""
    tensors = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return sorted(name for name in missing if name not in tensors or id(tensors[name]) not in loaded)


def check_complete(
    name_or_dir: str | Path,
    missing: Sequence[str],
    what: str = "encoder weights",
    expected: str = "a complete checkpoint",
) -> None:
    """Raises UserError with the first missing weight if a checkpoint lacks weights; ``what`` names their kind."""
    if missing:
        raise UserError(
            f"{name_or_dir}: the checkpoint lacks {len(missing)} {what}, the first is {missing[0]}; expected {expected}"
        )


def check_vocabulary(name_or_dir: str | Path, tokens: int, config: PretrainedConfig) -> None:
    """Raises UserError if a tokenizer of ``tokens`` tokens has ids without an embedding in the encoder."""
    if tokens > config.vocab_size:
        raise UserError(
            f"{name_or_dir}: the tokenizer has {tokens} tokens, the encoder {config.vocab_size}; "
            "expected the encoder's own tokenizer"
        )


def load_config(name_or_dir: str | Path) -> PretrainedConfig:
    """The configuration of a trainable model; raises UserError for other models, and as ``load_pretrained`` does."""
    config = encoder_config(name_or_dir)
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"{name_or_dir}: model type {config.model_type!r} cannot be trained; expected a text encoder: "
            "a type that AutoModelForMaskedLM knows"
        )
    return config


def _load_masked_lm(name_or_dir: str | Path, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """A masked language model and the names of missing head weights; other missing weights raise UserError."""
    model, info = load_pretrained(AutoModelForMaskedLM, name_or_dir, output_loading_info=True, **options)
    encoder = f"{model.base_model_prefix}."
    missing = missing_weights(model, info["missing_keys"])
    check_complete(name_or_dir, [name for name in missing if name.startswith(encoder)])
    return model, [name for name in missing if not name.startswith(encoder)]


def lacks_lm_head(name_or_dir: str | Path) -> bool:
    """Whether a checkpoint lacks MLM head weights; reads no weights. Raises as :func:`load_masked_lm` does."""
    return bool(_load_masked_lm(name_or_dir, device_map="meta")[1])


def load_masked_lm(name_or_dir: str | Path, head_seed: int | None = None) -> PreTrainedModel:
    """A masked language model: fp32, on the CPU, in eval mode.

    With ``head_seed``, a checkpoint without an MLM head gets a new one: random weights drawn with the seed, and a
    decoder tied to the embeddings.

    Raises UserError for a model type that cannot be trained, an absent or broken folder, a checkpoint without all
    encoder weights, and, without ``head_seed``, a checkpoint without an MLM head.
    """
    load_config(name_or_dir)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(head_seed or 0)
        model, missing = _load_masked_lm(name_or_dir, dtype=torch.float32)
    if missing and head_seed is None:
        raise UserError(
            f"{name_or_dir}: the MLM head is missing ({missing[0]} and {len(missing) - 1} more weights); "
            "expected a checkpoint saved with its masked-language-model head"
        )
    if missing:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return model


def encoder_config(name_or_dir: str | Path) -> PretrainedConfig:
    """The configuration of any model; raises UserError for an encoder-decoder, and as ``load_pretrained`` does."""
    config = load_pretrained(AutoConfig, name_or_dir)
    if config.is_encoder_decoder:
        raise UserError(f"{name_or_dir}: {config.model_type!r} is an encoder-decoder; expected an encoder")
    return config


def without_pooler(config: PretrainedConfig) -> dict[str, Any]:
    """Options of ``AutoModel`` that omit the pooler, which is not used or trained."""
    model: Any = MODEL_MAPPING[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model).parameters else {}


def load_encoder(name_or_dir: str | Path) -> PreTrainedModel:
    """Any encoder that ``AutoModel`` knows, without head and pooler: fp32, on the CPU, in eval mode.

    Raises UserError for an absent or broken folder, an encoder-decoder, and a checkpoint without all encoder weights.
    """
    options = without_pooler(encoder_config(name_or_dir))
    model, info = load_pretrained(AutoModel, name_or_dir, dtype=torch.float32, output_loading_info=True, **options)
    check_complete(name_or_dir, missing_weights(model, info["missing_keys"]))
    return model


def has_lm_head(config: PretrainedConfig) -> bool:
    """Whether a saved model's first architecture is a masked language model."""
    return (config.architectures or [""])[0].endswith("ForMaskedLM")


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of the first class in ``config.architectures``, in fp32 with random weights: with its MLM head or, as in
    :func:`load_encoder`, without."""
    if has_lm_head(config):
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    return AutoModel.from_config(config, dtype=torch.float32, **without_pooler(config))


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The encoder inside a masked language model; an encoder is returned unchanged."""
    return model.base_model


def separate_layers(encoder: nn.Module, setting: str) -> nn.ModuleList:
    """The encoder's layers, lowest first; raises UserError, naming ``setting``, if they cannot be told apart."""
    config: Any = encoder.config
    layers = family_of(config).layers(encoder)
    if not layers:
        raise UserError(
            f"{setting}: found model type {config.model_type!r}, whose layers cannot be told apart; "
            f"expected another model, or no {setting}"
        )
    return layers


@contextmanager
def first_layers(encoder: nn.Module, count: int) -> Iterator[None]:
    """Makes forwards of the encoder, inside the block, run only its first ``count`` layers.

    A norm after the last layer is applied, as if the encoder had no further layers. The layers must be separate.
    """
    config: Any = encoder.config
    layers = family_of(config).layers(encoder)
    above = list(layers)[count:]
    del layers[count:]
    try:
        yield
    finally:
        layers.extend(above)


def cut_above(encoder: PreTrainedModel, count: int) -> None:
    """Removes the layers above the first ``count`` and adapts the configuration, in place.

    Raises UserError if the layers cannot be told apart.
    """
    config: Any = encoder.config
    del separate_layers(encoder, "layers")[count:]
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    config.num_hidden_layers = count


def stated_layer(config: PretrainedConfig) -> int | None:
    """The layer of the sentence vectors that an export states (see :func:`state_layer`); None is the last."""
    layer: int | None = getattr(config, "contrast_layer", None)
    return layer


def state_layer(config: PretrainedConfig, layer: int | None) -> None:
    """States the layer of the sentence vectors in a configuration, which is saved with it; None removes it."""
    vars(config).pop("contrast_layer", None)
    if layer is not None:
        config.contrast_layer = layer


def freeze(model: PreTrainedModel, parts: Set[int]) -> None:
    """Freezes ``parts`` of the encoder: 0 is the embeddings (and an LM decoder tied to them), 1 … L are the layers.

    Lower layers are already shared across languages; freezing them limits forgetting and skips their backward pass.
    Raises UserError if the layers cannot be told apart.
    """
    encoder: Any = encoder_of(model)
    if 0 in parts:
        getattr(encoder, "embeddings", encoder.get_input_embeddings()).requires_grad_(False)
    if numbers := parts - {0}:
        layers = separate_layers(encoder, "freeze_layers")
        for number in numbers:
            layers[number - 1].requires_grad_(False)


def freeze_head(model: PreTrainedModel) -> None:
    """Freezes the weights of a masked language model outside its encoder; does nothing to an encoder."""
    encoder = set(encoder_of(model).parameters())
    for parameter in model.parameters():
        if parameter not in encoder:
            parameter.requires_grad_(False)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Makes the encoder's layers store only their input; backward recomputes the rest with the same dropout.

    Raises UserError for a model type without support for it.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"activation_checkpointing: found model type {model.config.model_type!r}, which does not support it; "
            "expected another type, or no activation_checkpointing"
        )
    enable: Any = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.23
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # The call above makes the embeddings' output require a gradient; frozen layers would then run backward too.
    model.disable_input_require_grads()


def lm_transform(mlm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The LM head up to its last layer: hidden states [..., H] → [..., H]."""
    return family_of(mlm.config).lm_transform(mlm, hidden)


def lm_decoder(mlm: PreTrainedModel) -> nn.Linear:
    """The LM head's last layer, H → V; it shares the weight of the input embeddings if the model ties them."""
    decoder: Any = mlm.get_output_embeddings()
    return decoder


def max_sequence(config: PretrainedConfig) -> int:
    """The maximum sequence length in tokens, special tokens included.

    ``sys.maxsize`` for an architecture without a position table.
    """
    positions: int = getattr(config, "max_position_embeddings", sys.maxsize)
    return positions - family_of(config).first_position(config)
