"""Loading from Hugging Face, by hub name or from a folder: quiet, no remote code, clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as hf_logging

from ppa_fast.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' load report: it calls the pooler, which is kept elsewhere, "unexpected"."""
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
    """``auto.from_pretrained(name_or_dir, **options)`` of one of transformers' Auto classes, without remote code.

    Raises UserError, naming ``name_or_dir`` and the reason, where the folder is absent or cannot be loaded.
    """
    name, path = str(name_or_dir), Path(name_or_dir)
    # Told from a hub name ("google-bert/bert-base") here, because asking the hub takes long where it is out of reach.
    beside = path.parent != Path() and path.parent.is_dir()
    if not path.is_dir() and (beside or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder; expected a Hugging Face model folder or the name of a hub model")
    try:
        with quiet():
            return auto.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # transformers passes on whatever its parsers, unpicklers and the network raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name}: cannot be loaded with {auto.__name__}: {reason}") from error
