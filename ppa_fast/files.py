"""Files that appear whole or not at all, and folders that one process at a time writes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ppa_fast.errors import UserError


def check_new_folder(out: str | Path) -> None:
    """Raises UserError unless ``out`` is absent or an empty folder."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name")


@contextmanager
def alone(folder: Path, others: str) -> Iterator[int]:
    """Holds the lock of a folder, made where there is none; it ends with the process, however that ends.

    A folder that is left empty is removed. Gives the lock's descriptor: a child process that inherits it holds the lock
    too. Where the file system has no locks (some of networks) there is none.

    Raises:
        UserError: another process holds it: the folder is in use by ``others``; or it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: in use by {others}") from error
        try:
            yield descriptor
        finally:
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong inside (a full disk, no permission) into a UserError that names ``path`` and the reason."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"{path}: cannot be written: {reason or error}") from error


def write_text(path: Path, text: str) -> None:
    """Replaces a small file in one step: a reader, or the next start after a crash, sees the old text or the new.

    Raises UserError, naming the file, where it cannot be written; it is as before then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            temporary.rename(path)
            sync(path.parent)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise


def remove_folder(path: Path) -> None:
    """Removes a folder under another name, so that no part of it is ever taken for the whole. Absent is fine too.

    Raises UserError, naming the folder, where it cannot be renamed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if path.is_dir():
        with writing(path):
            path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
