"""One seed: transformers' Trainer on the order that is ours, from an encoder to scores."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ppa_fast.errors import UserError
from ppa_fast.files import write_text
from ppa_fast.finetune.dataset import Drawn
from ppa_fast.finetune.head import load_with_head
from ppa_fast.finetune.job import Job, to_json
from ppa_fast.finetune.order import Order, steps_of
from ppa_fast.finetune.table import Scores, language_means
from ppa_fast.finetune.task import first_rank
from ppa_fast.hub import quiet
from ppa_fast.progress import Progress

READINGS = 100  # of the loss in a run: each waits for the device


class Epochs(TrainerCallback):
    """Evaluates and saves at the ends of epochs, shows progress, stops at a loss that is not finite."""

    def __init__(self, bar: Progress, ends: list[int], evaluate: bool) -> None:
        self.bar, self.ends, self.evaluate = bar, ends, evaluate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update()
        if state.global_step in self.ends:
            control.should_evaluate, control.should_save = self.evaluate, True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise UserError(f"step {state.global_step}: the loss is {loss}; expected a lower --learning-rate")
        self.bar.update(0, note=f"loss {loss:.3f}")


class SeedTrainer(Trainer):
    """transformers' Trainer on our order and a task's score; one epoch to it is the whole run, all epochs of ours."""

    model: PreTrainedModel

    def __init__(self, job: Job, drawn: Drawn, seed: int, **options: Any) -> None:
        task = job.task
        model = load_with_head(job.settings.model, task.auto, task.labels, seed)
        super().__init__(
            model, data_collator=task.collate, train_dataset=drawn, eval_dataset=job.dev or None, **options
        )
        self.job, self.drawn, self.order = job, drawn, Order(drawn.lengths, job.settings.batch, seed)
        # Classifiers accept the Trainer's num_items_in_batch and ignore it: their mean losses would be summed over the
        # micro-batches of a step (tried: 4 micro-batches, 4 times the loss). Without it the Trainer divides.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The order's examples, cut into micro-batches, which the accelerator deals out to the ranks in turns."""
        loader: DataLoader[Any] = DataLoader(
            self.drawn,
            batch_size=self.args.per_device_train_batch_size,
            sampler=self.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The task's scores, the mean over the languages of the dev sets; every rank computes the same."""
        means = language_means(self.scores(self.job.dev))
        metrics = {f"eval_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def scores(self, sets: dict[str, list[Any]]) -> Scores:
        """The task's scores of the model as it is, by language."""
        return {code: self.job.task.score(self.model, examples, code) for code, examples in sets.items()}


def _arguments(job: Job, folder: Path, seed: int, steps: int) -> TrainingArguments:
    """The Trainer's arguments. Our callback evaluates and saves, so "every ``steps`` steps" is just the end."""
    cuda, defaults = torch.cuda.is_available(), job.task.defaults
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=1,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.accumulation,
        learning_rate=job.settings.learning_rate,
        warmup_steps=min(defaults.warmup_steps, steps // 10),
        weight_decay=defaults.weight_decay,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=not cuda and job.deepspeed is None,  # gloo between ranks; with DeepSpeed the Trainer has one CPU rank
        bf16=cuda,
        eval_strategy="steps" if job.dev else "no",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=1,
        load_best_model_at_end=bool(job.dev),
        metric_for_best_model=f"eval_{job.task.metric}",
        greater_is_better=True,
        logging_steps=max(1, steps // READINGS),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        deepspeed=str(job.deepspeed) if job.deepspeed else None,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a process drives one GPU: for more there is the launcher, not DataParallel
    return arguments


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest whole checkpoint in a seed's folder and its step; the Trainer writes trainer_state.json last."""
    whole = [path.parent for path in (folder / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in whole}
    newest = max(steps, default=0)
    return steps.get(newest), newest


def _save_model(trainer: SeedTrainer, out: Path) -> None:
    """The model and its tokenizer as a Hugging Face folder, which appears whole or not at all."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        temporary = out.with_name(f".{out.name}.tmp")
        for folder in (temporary, out):
            shutil.rmtree(folder, ignore_errors=True)
        with quiet():
            trainer.model.save_pretrained(temporary, state_dict=weights)
            trainer.job.task.tokenizer.save_pretrained(temporary)
        temporary.rename(out)


def run_seed(job: Job, seed: int, folder: Path) -> dict[str, Any]:
    """Fine-tunes and scores one seed in ``folder``, going on from its last whole checkpoint.

    Returns ``{"seed", "loss": [[step, mean since the one before]], "dev": [{"epoch", metric: mean over dev files}],
    "test": {language: {metric: score}}}``, and writes it to result.json beside the model, a Hugging Face folder. Raises
    UserError for an encoder that cannot be loaded and a loss that is not finite.
    """
    task = job.task
    drawn = Drawn(task, job.data, job.mix, seed, job.settings.epochs)
    steps = [steps_of(len(lengths), job.settings.batch) for lengths in drawn.lengths]
    ends = [sum(steps[: epoch + 1]) for epoch in range(len(steps))]
    arguments = _arguments(job, folder, seed, ends[-1])
    checkpoint, done = last_checkpoint(folder)
    first = first_rank()
    with Progress(f"seed {seed}: fine-tuning", ends[-1], "steps", initial=done, enabled=first) as bar:
        trainer = SeedTrainer(job, drawn, seed, args=arguments, callbacks=[Epochs(bar, ends, bool(job.dev))])
        trainer.remove_callback(PrinterCallback)
        with quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save_model(trainer, folder / "model")
    history = trainer.state.log_history
    result = {
        "seed": seed,
        "loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        "dev": [
            {"epoch": ends.index(int(entry["step"])) + 1}
            | {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            for entry in history
            if f"eval_{task.metric}" in entry
        ],
        "test": trainer.scores(job.test),
    }
    trainer.accelerator.wait_for_everyone()
    if first:
        write_text(folder / "result.json", to_json(result))
        shutil.rmtree(folder / "checkpoints")
    return result
