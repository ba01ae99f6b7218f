"""Model folders: weights of the base checkpoint that are not trained, and complete Hugging Face folders.

A masked language model does not load all weights of its checkpoint, such as the pooler or BERT's next-sentence head.
They are saved when a run starts and restored, bit for bit, when its model is saved. Otherwise fine-tuning the aligned
model would start from a random pooler, unlike the unaligned baseline.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    MODEL_FOR_PRETRAINING_MAPPING,
    AutoModel,
    AutoModelForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ppa_fast.files import follow_umask, sync
from ppa_fast.hub import load_pretrained, quiet
from ppa_fast.model.encoder import encoder_of
from ppa_fast.model.sentence_transformer import SentenceModules

UNTOUCHED = "untouched.safetensors"


def untouched_weights(name_or_dir: str | Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """The checkpoint's weights that ``model``, loaded from it, does not have: fp32, by full Hugging Face name.

    Pretraining heads are included only for a masked language model. Raises UserError as ``load_pretrained`` does.
    """
    held = model.state_dict().keys()
    found: dict[str, Tensor] = {}
    has_head = encoder_of(model) is not model
    pretraining = has_head and type(model.config) in MODEL_FOR_PRETRAINING_MAPPING
    for auto in (AutoModel, AutoModelForPreTraining) if pretraining else (AutoModel,):
        complete, info = load_pretrained(auto, name_or_dir, dtype=torch.float32, output_loading_info=True)
        prefix = f"{complete.base_model_prefix}." if auto is AutoModel and has_head else ""
        for name, tensor in complete.state_dict().items():
            if name not in info["missing_keys"] and prefix + name not in held:
                found[prefix + name] = tensor
    return found


def save_base(
    model: PreTrainedModel, name_or_dir: str | Path, tokenizer: PreTrainedTokenizerBase, out: str | Path
) -> None:
    """Writes to the folder ``out`` those files of the base model ``model`` (from ``name_or_dir``) that an export
    needs.

    These are config.json, the tokenizer, ``untouched.safetensors`` (see ``untouched_weights``) and the settings of
    sentence-transformers. ``out`` must not exist yet and is created atomically.
    """
    folder = Path(out)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    with quiet():
        model.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    save_file(untouched_weights(name_or_dir, model), temporary / UNTOUCHED, metadata={"format": "pt"})
    follow_umask(temporary / UNTOUCHED)
    SentenceModules.of(str(name_or_dir)).keep(temporary)
    for file in temporary.iterdir():
        sync(file)
    temporary.rename(folder)
    sync(folder.parent)


def save_folder(
    model: PreTrainedModel, untouched: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, out: str | Path
) -> None:
    """Writes a Hugging Face folder: config.json, the tokenizer, one model.safetensors that includes the model's head.

    ``untouched`` (full Hugging Face names) is stored with the weights of ``model``, so that ``AutoModel`` finds its
    pooler.
    """
    state: dict[str, Any] = {**model.state_dict(), **untouched}
    with quiet():
        model.save_pretrained(out, state_dict=state, max_shard_size="1TB")
        tokenizer.save_pretrained(out)
    follow_umask(*Path(out).glob("*.safetensors"))
