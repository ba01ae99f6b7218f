"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ppa_fast.errors import UserError


def check_new_folder(out: str | Path) -> None:
    """Raises UserError unless ``out`` is absent or an empty folder."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name")


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces a small file in one step: a reader, or the next start after a crash, sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)
