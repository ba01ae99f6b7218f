"""Checkpoints: ours, by parameter name, so that a run can go on with other ranks and another ZeRO stage.

``RUN/checkpoints/step-00000500/`` holds ``query.safetensors`` (fp32 weights), ``exp_avg.safetensors``,
``exp_avg_sq.safetensors``, ``momentum.safetensors`` (fp32 master), ``queue.safetensors`` (live keys, oldest first, and
groups) and ``state.json``, which lists them with their sizes. No generator state is there: the order, the coins and the
masks are functions of (seed, epoch, pair), dropout's generator is seeded anew for every micro-batch.

A folder appears whole or not at all: it is written under a temporary name, synced, renamed; then ``best`` moves to it
if it is the best, and last of all ``latest``. A save that is killed or fails leaves the one before it as it was. A run
that has saved nothing yet has an empty ``latest``, so folders without one mean that somebody removed it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.files import remove_folder, sync, write_text, writing

STATE = "state.json"
KEYS = {"step", "steps", "applied", "skipped", "best", "cursor", "loss_scaler", "batch", "store", "settings", "files"}


class Checkpoints:
    """The checkpoints of a run folder. Writing is for rank 0, reading for every rank."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def named(self, name: str) -> Path | None:
        """The folder that ``latest`` or ``best`` names, None if there is none yet."""
        folder = self._pointer(name)
        if not folder:
            return None
        path = self.folder / folder
        if not path.is_dir():
            raise UserError(f"{self.folder / name}: names {folder}, which is not there; expected a folder beside it")
        return path

    def resume_point(self) -> Path | None:
        """The checkpoint for a run to go on from, its files checked (see :func:`check`); None if nothing is saved yet.

        Raises UserError where it is damaged, or ``latest`` was removed; the message tells which other one is whole.
        """
        try:
            path = self.named("latest")
            if path is not None:
                check(path)
            elif not (self.folder / "latest").exists() and self._steps():
                raise UserError(f"{self.folder}: found {self._steps()[-1].name}, but no file latest that names it")
        except UserError as error:
            raise UserError(f"{error}; {self._way_on()}") from error
        return path

    def save(
        self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], best: bool = False
    ) -> None:
        """Writes the checkpoint of ``step`` (kept if it is there already), moves ``latest`` to it, and ``best``.

        Raises UserError, naming the file, where it cannot be written; what was begun of it is removed.
        """
        path = self.path(step)
        if not path.is_dir():
            temporary = self.folder / f".{path.name}.tmp"
            try:
                self._write(temporary, state, tensors)
                with writing(path):
                    temporary.rename(path)
                    sync(self.folder)
            except UserError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for pointer in ["best", "latest"] if best else ["latest"]:
            write_text(self.folder / pointer, path.name)

    def _write(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        with writing(folder):
            self.folder.mkdir(exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        sizes = {}
        for name, content in tensors.items():
            file = folder / f"{name}.safetensors"
            with writing(file):
                save_file({key: tensor.detach().contiguous().cpu() for key, tensor in content.items()}, file)
                sync(file)
                sizes[file.name] = file.stat().st_size
        write_text(folder / STATE, json.dumps({**state, "files": sizes}, indent=1))

    def rewind(self, step: int) -> None:
        """Before a run goes on from ``step``, or begins (0): removes what lies after it, which will be written again,
        and what is left of a save that was killed."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._steps():
            if path.name > self.path(step).name:
                remove_folder(path)
        best = self._pointer("best")
        if best and not (self.folder / best).is_dir():
            (self.folder / "best").unlink()
        if step == 0:
            write_text(self.folder / "latest", "")
        self._clear()

    def prune(self, keep: int) -> None:
        """Removes all but the newest ``keep`` checkpoints, the best one and the latest."""
        steps = self._steps()
        kept = {*(path.name for path in steps[-keep:]), self._pointer("best"), self._pointer("latest")}
        for path in steps:
            if path.name not in kept:
                remove_folder(path)
        self._clear()

    def _clear(self) -> None:
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _pointer(self, name: str) -> str:
        """What ``latest`` or ``best`` says; empty if it is not there."""
        file = self.folder / name
        try:
            return file.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):  # the plan says so of an output that is a file
            return ""
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error

    def _way_on(self) -> str:
        """What to do where the latest checkpoint cannot be used."""
        for path in reversed(self._steps()):
            try:
                check(path)
            except UserError:
                continue
            return f"{path.name} is whole; to go on from it: echo {path.name} > {self.folder / 'latest'}"
        return "no other checkpoint here is whole: put a copy in its place, or begin anew in another output"


def check(path: Path) -> None:
    """Raises UserError, naming the file, unless all files of a checkpoint folder are there, with the sizes and headers
    that were written. No tensor is read: it takes milliseconds at any size, and a changed byte inside goes unseen."""
    for name, size in read_state(path)["files"].items():
        file = path / name
        try:
            with safe_open(file, "pt"):
                found = file.stat().st_size
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error
        if found != size:
            raise UserError(f"{file}: found {found:,} bytes, expected {size:,}")


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint folder; raises UserError, naming the file, where it cannot be read."""
    file = path / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    missing = sorted(KEYS.difference(state) if isinstance(state, dict) else KEYS)
    if missing:
        raise UserError(f"{file}: cannot be read: it lacks {', '.join(missing)}")
    return state


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """``<name>.safetensors`` of a folder, on the CPU; raises UserError, naming the file, if damaged."""
    file = path / f"{name}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
