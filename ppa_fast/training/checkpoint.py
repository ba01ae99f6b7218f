"""Checkpoints by parameter name, so that a run can resume with a different number of ranks or ZeRO stage.

``RUN/checkpoints/step-00000500/`` holds ``query.safetensors`` (fp32 weights), ``exp_avg.safetensors``,
``exp_avg_sq.safetensors``, ``momentum.safetensors`` (fp32 master), ``queue.safetensors`` (live keys, oldest first, and
groups) and ``state.json``, which lists the files with their sizes and checksums. No generator state is saved: the
order, the input shuffling and the masks are functions of (seed, epoch, pair), and dropout's generator is reseeded for
every micro-batch.

A save is atomic: the folder is written under a temporary name, synced and renamed. Then ``best`` is updated if the
checkpoint is the best, and finally ``latest``. A save that is killed or fails leaves the previous checkpoint unchanged.
If the latest checkpoint is damaged, a run resumes from the newest intact one before it. A run without a checkpoint has
an empty ``latest``. If checkpoints exist and ``latest`` does not, somebody removed it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.files import follow_umask, remove_folder, sync, write_errors, write_text
from ppa_fast.hub import check_finite

log = logging.getLogger(__name__)

STATE = "state.json"
KEYS = {"step", "steps", "applied", "skipped", "best", "cursor", "loss_scaler", "batch", "store", "settings", "files"}


class Checkpoints:
    """The checkpoints of a run folder. Only rank 0 writes; every rank can read."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def named(self, name: str) -> Path | None:
        """The folder that ``latest`` or ``best`` names; None if nothing is saved yet."""
        folder = self._pointer(name)
        if not folder:
            return None
        path = self.folder / folder
        if not path.is_dir():
            raise UserError(f"{self.folder / name}: found {folder}, expected the name of an existing checkpoint folder")
        return path

    def resume_point(self, warn: Callable[[str], object] = log.warning) -> Path | None:
        """The checkpoint to resume from: ``latest`` or, with a message to ``warn``, the newest intact one before it.

        None if nothing is saved yet. Raises UserError, naming the file, if no checkpoint is intact (see :func:`check`),
        if a file cannot be read for lack of permission, or if ``latest`` was removed or names no checkpoint.
        """
        try:
            path = self.named("latest")
            if path is None and not (self.folder / "latest").exists() and self._steps():
                raise UserError(f"{self.folder / 'latest'}: no such file, but found {self._steps()[-1].name}")
        except UserError as error:
            raise UserError(f"{error}; {self._recovery_advice()}") from error
        if path is None:
            return None
        try:
            check(path)
        except UserError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            intact = self._intact(before=path.name)
            if intact is None:
                raise UserError(f"{error}; {self._recovery_advice()}") from error
            warn(f"{error}; resuming from {intact.name}, the newest intact checkpoint before it")
            return intact
        return path

    def save(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], best: bool = False
    ) -> None:
        """Writes the checkpoint of ``step`` unless it exists, and sets ``latest`` and, if requested, ``best`` to it.

        Raises UserError, naming the file, if it cannot be written; the incomplete folder is removed.
        """
        path = self.path(step)
        if not path.is_dir():
            temporary = self.folder / f".{path.name}.tmp"
            try:
                self._write(temporary, state, tensors)
                with write_errors(path):
                    temporary.rename(path)
                    sync(self.folder)
            except UserError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for pointer in ["best", "latest"] if best else ["latest"]:
            write_text(self.folder / pointer, path.name)

    def _write(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        with write_errors(folder):
            self.folder.mkdir(exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        sizes, checksums = {}, {}
        for name, content in tensors.items():
            file = folder / f"{name}.safetensors"
            saved = {key: tensor.detach().contiguous().cpu() for key, tensor in content.items()}
            with write_errors(file):
                save_file(saved, file)
                follow_umask(file)
                sync(file)
                sizes[file.name] = file.stat().st_size
            checksums[file.name] = checksum(saved)
        write_text(folder / STATE, json.dumps({**state, "files": sizes, "checksums": checksums}, indent=1))

    def rewind(self, step: int) -> None:
        """Prepares for a run that resumes from ``step`` or starts (0): removes later checkpoints, which will be written
        again, and temporary folders of a save that was killed."""
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._steps():
            if path.name > self.path(step).name:
                remove_folder(path)
        best = self._pointer("best")
        if best and not (self.folder / best).is_dir():
            (self.folder / "best").unlink()
        if step == 0:
            write_text(self.folder / "latest", "")
        self._remove_temporary()

    def prune(self, keep: int) -> None:
        """Removes all checkpoints except the newest ``keep``, the best and the latest."""
        steps = self._steps()
        kept = {*(path.name for path in steps[-keep:]), self._pointer("best"), self._pointer("latest")}
        for path in steps:
            if path.name not in kept:
                remove_folder(path)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _pointer(self, name: str) -> str:
        """The content of ``latest`` or ``best``; empty if the file does not exist."""
        file = self.folder / name
        try:
            return file.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):  # preflight reports an output that is a file
            return ""
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error

    def _intact(self, before: str | None = None) -> Path | None:
        """The newest intact checkpoint (with ``before``: older than that name); None if there is none."""
        for path in reversed(self._steps()):
            if before is None or path.name < before:
                try:
                    check(path)
                except UserError:
                    continue
                return path
        return None

    def _recovery_advice(self) -> str:
        """What to do if the run cannot resume."""
        if path := self._intact():
            return f"{path.name} is intact; to resume from it, run: echo {path.name} > {self.folder / 'latest'}"
        return "no intact checkpoint found; restore a backup or choose a new --output"


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """XXH3-64 of names, types, shapes and elements of contiguous tensors on the CPU, in the names' order."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check(path: Path) -> None:
    """Raises UserError, naming the file, unless all files of a checkpoint folder have the recorded sizes and checksums.

    Reads every tensor. A checkpoint of an earlier version has no checksums.
    """
    for name, size in read_state(path)["files"].items():
        file = path / name
        try:
            with file.open("rb"), safe_open(file, "pt"):  # open names the reason, which safe_open does not
                found = file.stat().st_size
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if found != size:
            raise UserError(f"{file}: found {found:,} bytes, expected {size:,}")
        read_tensors(path, file.stem)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint folder; raises UserError, naming the file, if it cannot be read."""
    state = _read_json(path / STATE)
    if missing := sorted(KEYS.difference(state)):
        raise UserError(f"{path / STATE}: cannot be read: found no {', '.join(missing)}")
    return state


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of ``<name>.safetensors`` on the CPU.

    Raises UserError, naming the file, if it cannot be read, if ``state.json`` records another checksum for it, and if a
    tensor is not finite.
    """
    file = path / f"{name}.safetensors"
    state = _read_json(path / STATE) if (path / STATE).exists() else {}
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    expected = state.get("checksums", {}).get(file.name)
    if expected and checksum(tensors) != expected:
        raise UserError(f"{file}: found other bytes than were written: its checksum differs; the disk may be failing")
    check_finite(file, tensors.items())
    return tensors
