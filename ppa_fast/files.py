"""Atomic file writes and folder locks."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from ppa_fast.errors import UserError, full_disk

MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}
"""Extensions of a model folder's weights, configuration and tokenizer."""


def check_new_folder(out: str | Path) -> None:
    """Raises UserError unless ``out`` does not exist or is an empty folder."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; expected a new name")


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Writes a complete folder ``out``: yields a temporary folder, which is renamed to ``out`` at the end.

    ``out`` may be a link to an empty folder. An error removes the temporary folder. Raises UserError as
    :func:`check_new_folder`, and if the folder cannot be written or cannot be replaced (a mount point, or below a
    read-only folder).
    """
    check_new_folder(out)
    folder = Path(out).resolve()
    if folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)):
        reason = "is a mount point" if os.path.ismount(folder) else f"is in {folder.parent}, which is read-only"
        raise UserError(f"{out}: {reason}, so it cannot be replaced at the end; expected a folder in it: {out}/NAME")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with write_errors(Path(out)):
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def output_file(path: str | Path, flag: str) -> Path:
    """Resolves the path of an output file, which :func:`write_text` will replace.

    Raises UserError, naming ``flag``, if the folder does not exist or the path is not a regular file (/dev/stdout).
    """
    file = Path(path).resolve()
    if not file.parent.is_dir() or (Path(path).exists() and not Path(path).is_file()):
        raise UserError(f"{flag} {path}: expected a regular file in an existing folder")
    return file


def fingerprint(path: Path) -> str:
    """XXH3-64 of a file's bytes, 16 hex digits; raises OSError if the file cannot be read."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def folder_lock(folder: Path, others: str) -> Iterator[int]:
    """Locks a folder, which is created if it is missing; the lock ends with the process, even a killed one.

    Yields the lock's descriptor; a child process that inherits it also holds the lock. An empty folder is removed on
    exit. File systems without locks, such as some network file systems, are not locked.

    Raises:
        UserError: another process holds the lock (the message names ``others``), or the folder cannot be created.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{folder}: in use by {others}; wait until it ends, or choose another folder"
                ) from error
        try:
            yield descriptor
        finally:
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; see :func:`folder_lock`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def sync(path: Path) -> None:
    """Flushes a file's content or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Converts write errors, such as a full disk, into a UserError that names ``path`` and the reason."""
    try:
        yield
    except Exception as error:  # libraries in Rust raise their own types
        reason = full_disk(error)
        if not reason and not isinstance(error, (OSError, SafetensorError)):
            raise
        reason = reason or getattr(error, "strerror", None)
        raise UserError(f"{path}: cannot be written: {reason or error}") from error


def follow_umask(*files: Path) -> None:
    """Gives files the permissions that the umask allows: safetensors makes them readable by their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)


def write_text(path: Path, text: str) -> None:
    """Replaces a small file atomically: readers see the old text or the new text, even after a crash.

    Raises UserError, naming the file, if it cannot be written; the old file then stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with write_errors(path):
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            temporary.rename(path)
            sync(path.parent)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file atomically; raises as :func:`write_text`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def remove_folder(path: Path) -> None:
    """Renames a folder before removing it, so that no incomplete folder keeps its name; ignores a missing folder.

    Raises UserError, naming the folder, if it cannot be renamed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if path.is_dir():
        with write_errors(path):
            path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
