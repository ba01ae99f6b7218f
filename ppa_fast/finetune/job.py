"""What a fine-tuning run is given, checked: the seeds of a run share it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.finetune.code_switch import Mixture
from ppa_fast.finetune.parallel import Parallel
from ppa_fast.finetune.task import Task


@dataclass(frozen=True)
class Settings:
    """What decides the result of a seed; saved as settings.json."""

    task: str
    model: str
    train: dict[str, str]
    dev: dict[str, str]
    test: dict[str, str]
    recipe: str
    language: str | None
    code_switch: float
    max_tokens: int
    learning_rate: float
    epochs: int
    batch: int
    max_rejected: float
    metric: str
    fingerprints: dict[str, str]  # XXH3-64 of the files, by name


@dataclass(frozen=True)
class Job:
    """A run: its settings, its data in memory, and how a step is cut (ranks · micro-batch · accumulation = batch)."""

    settings: Settings
    task: Task
    data: Parallel
    mix: Mixture
    dev: dict[str, list[Any]]
    test: dict[str, list[Any]]
    micro_batch: int
    accumulation: int
    deepspeed: Path | None


def cut(batch: int, micro_batch: int | None) -> tuple[int, int]:
    """The micro-batch (None: ``batch`` / ranks) and the accumulation steps; raises UserError where they do not fit."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    micro = batch // ranks if micro_batch is None else micro_batch
    if micro < 1 or batch < 1 or batch % (micro * ranks):
        raise UserError(f"--batch {batch}: expected a multiple of {ranks} ranks x micro-batch {micro}")
    return micro, batch // (micro * ranks)


def to_json(content: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
