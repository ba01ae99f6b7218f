"""Converts a plan to command lines, in execution order."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ppa_fast.ablation.plan import ROWS, Evaluation, Plan, Pretraining
from ppa_fast.settings import to_flags

TRAIN = Path(os.path.relpath(Path(__file__).resolve().parent.parent / "train.py"))


@dataclass(frozen=True)
class Stage:
    """A command and its output file or folder. ``resumes``: whether a second run resumes from an incomplete output."""

    name: str
    words: tuple[str, ...]
    out: Path
    resumes: bool = False

    @property
    def command(self) -> str:
        """The command line as a user would type it."""
        return shlex.join(self.words)

    def reads(self, other: Stage) -> bool:
        """Whether an argument of the command is the other stage's output."""
        return other != self and str(other.out) in self.words


def _stage(name: str, out: Path, command: str, *words: object, resumes: bool = False) -> Stage:
    return Stage(name, (*command.split(), *map(str, words)), out, resumes)


def result_file(out: Path, seed: int, row: str, evaluation: Evaluation) -> Path:
    """The file with the scores of a row."""
    path = out / f"seed-{seed}" / row / evaluation.name
    if evaluation.task == "retrieval":
        return path.with_name(f"{evaluation.name}.json")
    return path / f"seed-{seed}" / "result.json"


def evaluated(row: str, evaluation: Evaluation) -> bool:
    """Whether a row has this evaluation. Retrieval precedes fine-tuning: only the row that owns an encoder has it."""
    return evaluation.task != "retrieval" or ROWS[row].encoder == row


def _evaluate(evaluation: Evaluation, row: str, seed: int, model: str | Path, out: Path) -> Stage:
    name = f"seed-{seed}/{row}/{evaluation.name}"
    flags = to_flags(evaluation.options)
    file = result_file(out, seed, row, evaluation)
    if evaluation.task == "retrieval":
        how: tuple[object, ...] = ("--model", model, *flags, "--json", file, "--pairs", *evaluation.pairs)
        return _stage(name, file, "ppa-fast evaluate retrieval", *how)
    folder = out / name
    dev = ("--dev", *evaluation.dev) if evaluation.dev else ()
    switch = evaluation.code_switch if ROWS[row].switched else 0
    # A row without switching trains on English only. The other files are passed so that all rows reject the same
    # examples.
    how = ("--model", model, "--out", folder, "--first-seed", seed, "--code-switch", switch, *flags)
    files = ("--train", *evaluation.train, *dev, "--test", *evaluation.test)
    return _stage(name, folder, f"ppa-fast finetune {evaluation.task}", *how, *files, resumes=True)


def seed_stages(plan: Plan, rows: tuple[str, ...], seed: int, out: Path) -> Iterator[Stage]:
    """The stages of a seed in order. Stages without a seed in their name are shared by all seeds."""
    base, alignment = plan.base, plan.alignment
    if isinstance(base, Pretraining):
        tokenizer, weights, model = out / "tokenizer", out / f"seed-{seed}/init", out / f"seed-{seed}/base"
        yield _stage(
            "tokenizer",
            tokenizer,
            "ppa-fast tokenizer --out",
            tokenizer,
            *to_flags(base.tokenizer),
            "--files",
            *base.files,
        )
        how = ("--tokenizer", tokenizer, *to_flags(base.init), "--seed", seed, "--out", weights)
        yield _stage(f"seed-{seed}/init", weights, "ppa-fast init", *how)
        how = ("--model", weights, *to_flags(base.pretrain), "--seed", seed, "--out", model, "--files", *base.files)
        yield _stage(f"seed-{seed}/base", model, "ppa-fast pretrain", *how)
        encoders: dict[str, str | Path] = {"none": model}
    else:
        tokenizer = Path(base)
        encoders = {"none": base}

    aligned = [name for name in dict.fromkeys(ROWS[row].encoder for row in rows) if name not in encoders]
    store = Path(alignment.store) if alignment.store else out / "store"
    if aligned and not alignment.store:
        how = ("--tokenizer", tokenizer, *to_flags(alignment.prepare), "--out", store, "--pairs", *alignment.pairs)
        yield _stage("store", store, "ppa-fast prepare", *how)
    for name in aligned:
        run, encoders[name] = out / f"seed-{seed}/{name}/run", out / f"seed-{seed}/{name}/model"
        settings = {**alignment.settings, **(ROWS[name].objectives or {})}
        how = ("--model", encoders["none"], "--data", store, "--output", run, f"--seed={seed}", *to_flags(settings))
        launch = shlex.join(alignment.launch)
        yield _stage(f"seed-{seed}/{name}/run", run, launch, TRAIN, *how, resumes=True)
        # The latest checkpoint, because the best one depends on the run's evaluation pairs.
        how = (run, "--checkpoint", "latest", "--out", encoders[name])
        yield _stage(f"seed-{seed}/{name}/model", Path(encoders[name]), "ppa-fast export", *how)
    for row in rows:
        for evaluation in plan.evaluations:
            if evaluated(row, evaluation):
                yield _evaluate(evaluation, row, seed, encoders[ROWS[row].encoder], out)
