"""Fine-tunes and scores one seed with transformers' Trainer on a code-switched data set."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ppa_fast.errors import UserError
from ppa_fast.files import follow_umask, write_errors, write_json
from ppa_fast.hub import quiet
from ppa_fast.progress import Progress
from ppa_fast.tasks.code_switching import CodeSwitchedDataset, Mixture
from ppa_fast.tasks.head import load_with_head
from ppa_fast.tasks.parallel import ParallelExamples
from ppa_fast.tasks.sampler import LengthGroupedSampler, steps_of
from ppa_fast.tasks.tables import Scores, means
from ppa_fast.tasks.task import Task, first_rank
from ppa_fast.tasks.trainer import ProgressCallback, last_checkpoint, train, training_arguments


@dataclass(frozen=True)
class FineTuningSettings:
    """The settings that determine the result of a seed; saved as settings.json."""

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
    bf16: bool  # bf16 matrix products with fp32 weights
    fingerprints: dict[str, str]  # XXH3-64 of each file, by name


@dataclass(frozen=True)
class FineTuningRun:
    """A run: its settings, its data, and the parts of a step (ranks · micro-batch · accumulation = batch)."""

    settings: FineTuningSettings
    task: Task
    data: ParallelExamples
    mixture: Mixture
    dev: dict[str, list[Any]]
    test: dict[str, list[Any]]
    micro_batch: int
    accumulation: int
    deepspeed: Path | None


def split_batch(batch: int, micro_batch: int | None) -> tuple[int, int]:
    """The micro-batch (default: ``batch`` / ranks) and the accumulation steps; raises UserError if not divisible."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    micro = batch // ranks if micro_batch is None else micro_batch
    if micro < 1 or batch < 1 or batch % (micro * ranks):
        raise UserError(f"--batch: found {batch}, expected a multiple of {ranks} ranks x micro-batch {micro}")
    return micro, batch // (micro * ranks)


class SeedTrainer(Trainer):
    """transformers' Trainer with a custom sampler and the task's scores. One Trainer epoch is the complete run."""

    model: PreTrainedModel

    def __init__(self, run: FineTuningRun, dataset: CodeSwitchedDataset, seed: int, **options: Any) -> None:
        task = run.task
        model = load_with_head(run.settings.model, task.auto, task.labels, seed)
        super().__init__(
            model, data_collator=task.collate, train_dataset=dataset, eval_dataset=run.dev or None, **options
        )
        self.run, self.dataset = run, dataset
        self.sampler = LengthGroupedSampler(dataset.lengths, run.settings.batch, seed)
        # Classifiers accept the Trainer's num_items_in_batch but ignore it, so their mean losses would be summed over
        # the micro-batches of a step (measured: 4 micro-batches give 4 times the loss). With False the Trainer divides.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The sampler's examples in micro-batches, which the accelerator distributes to the ranks in turn."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The task's scores, averaged over the languages of the dev sets; every rank computes them."""
        scores = means(self.scores(self.run.dev), self.run.task.metrics)
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def scores(self, sets: dict[str, list[Any]]) -> Scores:
        """The task's scores of the current model, by language."""
        return {code: self.run.task.score(self.model, examples, code) for code, examples in sets.items()}


def _arguments(run: FineTuningRun, folder: Path, seed: int, steps: int) -> TrainingArguments:
    """The Trainer's arguments. ProgressCallback evaluates and saves, so the Trainer itself does so only at the end."""
    defaults = run.task.defaults
    return training_arguments(
        folder,
        seed,
        steps,
        num_train_epochs=1,
        per_device_train_batch_size=run.micro_batch,
        gradient_accumulation_steps=run.accumulation,
        learning_rate=run.settings.learning_rate,
        warmup_steps=min(defaults.warmup_steps, steps // 10),
        weight_decay=defaults.weight_decay,
        # Ranks on CPUs use gloo; with DeepSpeed there is only one CPU rank.
        use_cpu=not torch.cuda.is_available() and run.deepspeed is None,
        bf16=run.settings.bf16,
        eval_strategy="steps" if run.dev else "no",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        load_best_model_at_end=bool(run.dev),
        metric_for_best_model=f"eval_{run.task.selection}",
        greater_is_better=True,
        deepspeed=str(run.deepspeed) if run.deepspeed else None,
    )


def _save_model(trainer: SeedTrainer, out: Path) -> None:
    """Saves the model and its tokenizer as a Hugging Face folder, atomically."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        temporary = out.with_name(f".{out.name}.tmp")
        for folder in (temporary, out):
            shutil.rmtree(folder, ignore_errors=True)
        with write_errors(out):
            with quiet():
                trainer.model.save_pretrained(temporary, state_dict=weights)
                trainer.run.task.tokenizer.save_pretrained(temporary)
            follow_umask(*temporary.glob("*.safetensors"))
            temporary.rename(out)


def run_seed(run: FineTuningRun, seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tunes and scores one seed in ``folder``, resuming from its last complete checkpoint.

    Returns ``{"seed", "loss": [[step, mean since the previous entry]], "dev": [{"epoch", metric: mean over dev files}],
    "test": {language: {metric: score}}}`` and writes it to result.json; the model is saved in ``folder/model``. Raises
    UserError for an encoder that cannot be loaded, and a loss that is not finite.
    """
    task = run.task
    dataset = CodeSwitchedDataset(task, run.data, run.mixture, seed, run.settings.epochs)
    steps = [steps_of(len(lengths), run.settings.batch) for lengths in dataset.lengths]
    ends = [sum(steps[: epoch + 1]) for epoch in range(len(steps))]
    arguments = _arguments(run, folder, seed, ends[-1])
    checkpoint, done = last_checkpoint(folder)
    first = first_rank()
    with Progress(f"seed {seed}: fine-tuning", ends[-1], "steps", initial=done, enabled=first) as bar:
        callback = ProgressCallback(bar, ends, bool(run.dev))
        trainer = SeedTrainer(run, dataset, seed, args=arguments, callbacks=[callback])
        train(trainer, checkpoint)
    _save_model(trainer, folder / "model")
    history = trainer.state.log_history
    result = {
        "seed": seed,
        "loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "dev": [
            {"epoch": ends.index(int(entry["step"])) + 1}
            | {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            for entry in history
            if f"eval_{task.selection}" in entry
        ],
        "test": trainer.scores(run.test),
    }
    trainer.accelerator.wait_for_everyone()
    if first:
        write_json(folder / "result.json", result)
        shutil.rmtree(folder / "checkpoints")
    return result
