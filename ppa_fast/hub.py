"""Loads models and tokenizers from Hugging Face, by hub name or from a folder, without remote code."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as hf_logging

from ppa_fast.errors import UserError

MODULES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # package → module


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the load report of transformers; it lists the pooler, which is kept elsewhere, as "unexpected"."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(hf_logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def load_pretrained(auto: Any, name_or_dir: str | Path, **options: Any) -> Any:
    """Calls ``auto.from_pretrained(name_or_dir, **options)`` of a transformers Auto class, without remote code.

    Raises UserError, naming ``name_or_dir`` and the reason, if the folder is missing or cannot be loaded, and for a
    model with a weight that is not finite.
    """
    name, path = str(name_or_dir), Path(name_or_dir)
    # Detect a missing folder here: looking it up as a hub name ("google-bert/bert-base") is slow without a network.
    has_parent = path.parent != Path() and path.parent.is_dir()
    if not path.is_dir() and (has_parent or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder; expected a Hugging Face model folder or the name of a hub model")
    if path.is_dir() and (
        closed := [file for file in path.iterdir() if file.is_file() and not os.access(file, os.R_OK)]
    ):
        raise UserError(
            f"{closed[0]}: permission denied, expected a file that this user may read: chmod a+r {closed[0]}"
        )
    try:
        with quiet():
            loaded = auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # transformers passes on the errors of its parsers, of pickle and of the network
        reason = _advice(path, error) or str(error).strip().split("\n")[0]
        raise UserError(f"{name}: cannot be loaded with {auto.__name__}: {reason}") from error
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if isinstance(model, nn.Module):
        check_finite(name, model.named_parameters())
    return loaded


def _advice(path: Path, error: Exception) -> str | None:
    """What to do where the library's own message does not help, else None."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch advises to run the file
        return (
            "its weights are a pickle file with more than tensors, which would run code and is never loaded; expected "
            "weights in safetensors"
        )
    pieces = (path / "tokenizer.json").is_file() or not any(path.glob("*.model"))
    missing = [name for name in ("sentencepiece", "protobuf") if not importlib.util.find_spec(MODULES[name])]
    if missing and ("sentencepiece" in str(error).lower() or not pieces):
        return f"its tokenizer is a SentencePiece model without tokenizer.json; run pip install {' '.join(missing)}"
    return None


def check_finite(where: str | Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Raises UserError, naming ``where``, for the first of the named weights with NaN or an infinite element."""
    for name, weight in weights:
        if weight.is_floating_point() and weight.numel() and not weight.is_meta:
            extremes = torch.stack(torch.aminmax(weight.detach()))  # NaN if any element is; takes no memory
            if not extremes.isfinite().all():
                raise UserError(
                    f"{where}: weight {name}: found {extremes[~extremes.isfinite()][0].item()}, expected finite "
                    "numbers; use another checkpoint"
                )
