"""Model folders: the base checkpoint's part that training leaves alone, and complete Hugging Face folders.

A masked language model drops weights that its checkpoint may hold: the pooler, BERT's next-sentence head. They are kept
aside when a run starts and put back, bit for bit, when its model is saved: without them the aligned model would start
its fine-tuning from a random pooler that the unaligned baseline does not have.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForPreTraining, PreTrainedModel, PreTrainedTokenizerBase

from ppa_fast.files import sync
from ppa_fast.hub import load_pretrained, quiet

UNTOUCHED = "untouched.safetensors"


def untouched_weights(name_or_dir: str | Path, mlm: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a checkpoint that ``mlm``, loaded from it, does not hold: fp32, by their full Hugging Face names.

    Empty where the checkpoint has no more than the masked language model. Raises UserError as ``load_pretrained``.
    """
    held = mlm.state_dict().keys()
    found: dict[str, Tensor] = {}
    for auto in (AutoModel, AutoModelForPreTraining):
        model, info = load_pretrained(auto, name_or_dir, dtype=torch.float32, output_loading_info=True)
        prefix = f"{model.base_model_prefix}." if auto is AutoModel else ""
        for name, tensor in model.state_dict().items():
            if name not in info["missing_keys"] and prefix + name not in held:
                found[prefix + name] = tensor
    return found


def save_base(
    mlm: PreTrainedModel, name_or_dir: str | Path, tokenizer: PreTrainedTokenizerBase, out: str | Path
) -> None:
    """Writes what an export needs of the base model ``mlm`` (from ``name_or_dir``) to the folder ``out``.

    These are config.json, the tokenizer and ``untouched.safetensors`` (see ``untouched_weights``). ``out`` must not
    exist yet; it appears whole or not at all.
    """
    folder = Path(out)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    mlm.config.architectures = [type(mlm).__name__]
    with quiet():
        mlm.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    save_file(untouched_weights(name_or_dir, mlm), temporary / UNTOUCHED, metadata={"format": "pt"})
    for file in temporary.iterdir():
        sync(file)
    temporary.rename(folder)
    sync(folder.parent)


def save_folder(
    mlm: PreTrainedModel, untouched: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, out: str | Path
) -> None:
    """Writes a Hugging Face folder: config.json, the tokenizer, one model.safetensors with the MLM head.

    ``untouched`` (full Hugging Face names) is stored beside the weights of ``mlm``, so that ``AutoModel`` finds its
    pooler and ``AutoModelForMaskedLM`` its head.
    """
    state: dict[str, Any] = {**mlm.state_dict(), **untouched}
    with quiet():
        mlm.save_pretrained(out, state_dict=state, max_shard_size="1TB")
        tokenizer.save_pretrained(out)
