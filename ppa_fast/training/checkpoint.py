"""Checkpoints: ours, by parameter name, so that a run can go on with other ranks and another ZeRO stage.

``RUN/checkpoints/step-00000500/`` holds ``query.safetensors`` (fp32 weights), ``exp_avg.safetensors``,
``exp_avg_sq.safetensors``, ``momentum.safetensors`` (fp32 master), ``queue.safetensors`` (live keys, oldest first, and
groups) and ``state.json``. No generator state is there: the order, the coins and the masks are functions of (seed,
epoch, pair), dropout's generator is seeded anew for every micro-batch.

A folder appears whole or not at all: it is written under a temporary name, synced, renamed; ``latest`` moves last. A
save that is killed leaves the one before it as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.files import sync, write_text

STATE = "state.json"


class Checkpoints:
    """The checkpoints of a run folder. Writing is for rank 0, reading for every rank."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run) / "checkpoints"

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def named(self, name: str) -> Path | None:
        """The folder that ``latest`` or ``best`` names, None if there is none yet."""
        pointer = self.folder / name
        if not pointer.is_file():
            return None
        path = self.folder / pointer.read_text(encoding="utf-8").strip()
        if not path.is_dir():
            raise UserError(f"{pointer}: names {path.name}, which is not there; expected a folder beside it")
        return path

    def save(self, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Writes the checkpoint of ``step`` (kept if it is there already) and moves ``latest`` to it."""
        path = self.path(step)
        if not path.is_dir():
            temporary = self.folder / f".{path.name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, content in tensors.items():
                file = temporary / f"{name}.safetensors"
                save_file({key: tensor.detach().contiguous().cpu() for key, tensor in content.items()}, file)
                sync(file)
            (temporary / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            sync(temporary / STATE)
            sync(temporary)
            temporary.rename(path)
            sync(self.folder)
        write_text(self.folder / "latest", path.name)

    def mark_best(self, step: int) -> None:
        write_text(self.folder / "best", self.path(step).name)

    def rewind(self, step: int) -> None:
        """Before a run goes on from ``step``: removes what lies after it, since it will be written again.

        (A save that was killed before ``latest`` moved, say.)
        """
        for path in self.folder.glob("step-*"):
            if path.name > self.path(step).name:
                shutil.rmtree(path)
        best = self.folder / "best"
        if best.is_file() and not (self.folder / best.read_text(encoding="utf-8").strip()).is_dir():
            best.unlink()

    def prune(self, keep: int) -> None:
        """Removes all but the newest ``keep`` checkpoints, the best one and the latest."""
        steps = sorted(p for p in self.folder.glob("step-*") if p.is_dir())
        kept = {*steps[-keep:], self.named("best"), self.named("latest")}
        for path in steps:
            if path not in kept:
                shutil.rmtree(path)
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)


def read_state(path: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint folder; raises UserError, naming the file, where it cannot be read."""
    try:
        return json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / STATE}: cannot be read: {error}") from error


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """``<name>.safetensors`` of a checkpoint folder, on the CPU; raises UserError, naming the file, if damaged."""
    file = path / f"{name}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}; an earlier checkpoint may be whole") from error
