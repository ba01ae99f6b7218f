"""Shared code of pretraining and fine-tuning with transformers' Trainer: arguments, progress and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ppa_fast.errors import UserError, full_disk
from ppa_fast.hub import quiet
from ppa_fast.progress import Progress

READINGS = 100  # loss readings per run; each one synchronizes


class ProgressCallback(TrainerCallback):
    """Shows progress and raises for a non-finite loss. Saves, and optionally evaluates, at the steps ``saved``."""

    def __init__(self, bar: Progress, saved: Sequence[int] = (), evaluate: bool = False) -> None:
        self.bar, self.saved, self.evaluate = bar, saved, evaluate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update()
        if state.global_step in self.saved:
            control.should_evaluate, control.should_save = self.evaluate, True

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            step = state.global_step
            raise UserError(f"loss: found {loss} at step {step}, expected a finite value; lower --learning-rate")
        self.bar.update(0, note=f"loss {loss:.3f}")


def training_arguments(folder: Path, seed: int, steps: int, **options: Any) -> TrainingArguments:
    """The arguments of a run of ``steps`` steps with checkpoints in ``folder``, and the caller's ``options``."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=seed,
        max_grad_norm=1.0,
        save_total_limit=1,
        logging_steps=max(1, steps // READINGS),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        **options,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one GPU per process: use a launcher instead of DataParallel
    return arguments


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest complete checkpoint of a run and its step. The Trainer writes trainer_state.json last."""
    complete = [path.parent for path in (folder / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in complete}
    newest = max(steps, default=0)
    return steps.get(newest), newest


def train(trainer: Trainer, checkpoint: Path | None) -> None:
    """Runs a Trainer without its own output, resuming from ``checkpoint`` if given.

    Raises UserError, naming the folder of the checkpoints, if the disk is full.
    """
    trainer.remove_callback(PrinterCallback)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Exception as error:  # of the system, torch or safetensors
        if reason := full_disk(error):
            raise UserError(f"{trainer.args.output_dir}: cannot be written: {reason}") from error
        raise
