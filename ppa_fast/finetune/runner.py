"""``ppa-fast finetune``: files in, every seed, scores by language out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoConfig

from ppa_fast.data.encode import load_tokenizer
from ppa_fast.data.examples import load_json, output_file, parse_files
from ppa_fast.data.languages import is_english
from ppa_fast.errors import UserError
from ppa_fast.files import check_new_folder, write_text
from ppa_fast.finetune.classify import Classify
from ppa_fast.finetune.code_switch import mixture
from ppa_fast.finetune.dataset import dump
from ppa_fast.finetune.job import Job, Settings, cut, to_json
from ppa_fast.finetune.nli import Nli
from ppa_fast.finetune.parallel import read_parallel
from ppa_fast.finetune.qa import Qa
from ppa_fast.finetune.table import format_table, summarise
from ppa_fast.finetune.task import Task, first_rank
from ppa_fast.finetune.trainer import run_seed
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import max_sequence
from ppa_fast.progress import note

TASKS: dict[str, type[Task]] = {task.name: task for task in (Nli, Qa, Classify)}
_MODEL_FILES = {".json", ".safetensors", ".bin", ".txt", ".model"}  # weights, configuration, tokenizer


def _fingerprints(files: Sequence[Path]) -> dict[str, str]:
    """XXH3-64 of each file, by name; raises OSError for one that cannot be read."""
    found = {}
    for path in files:
        digest = xxhash.xxh3_64()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found[str(path)] = digest.hexdigest()
    return found


def _check_out(out: Path, settings: Settings) -> None:
    """Makes the output folder, or checks that what is in it was made with the same settings and files."""
    path, wanted = out / "settings.json", asdict(settings)
    if not path.is_file():
        check_new_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(wanted))
        return
    found = load_json(path)
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        if name == "fingerprints":
            changed = sorted({file for file, _ in {*found[name].items()} ^ {*value.items()}})
            raise UserError(f"--out {out}: begun before {', '.join(changed)} changed; expected a new folder")
        raise UserError(f"--out {out}: begun with {name} {found.get(name)}, now {value}; expected a new folder")


def _check_numbers(settings: Settings, seeds: int, first_seed: int) -> None:
    least = {"seeds": (seeds, 1), "first-seed": (first_seed, 0), "epochs": (settings.epochs, 1)}
    for name, (value, minimum) in {**least, "max-tokens": (settings.max_tokens, 16)}.items():
        if value < minimum:
            raise UserError(f"--{name} {value}: expected at least {minimum}")
    if not 0 <= settings.max_rejected <= 1:
        raise UserError(f"--max-rejected {settings.max_rejected}: expected a share between 0 and 1")
    if not settings.learning_rate > 0:
        raise UserError(f"--learning-rate {settings.learning_rate}: expected a positive number")


def _check_deepspeed(path: Path) -> None:
    """Raises UserError where transformers' Trainer cannot start DeepSpeed."""
    load_json(path)  # DeepSpeed would take comments, the Trainer does not
    if "RANK" not in os.environ:
        raise UserError(
            f"--deepspeed {path}: expected its launcher: deepspeed --no_python --no_local_rank ppa-fast finetune …"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1" and not torch.cuda.is_available():
        raise UserError(
            f"--deepspeed {path}: found several ranks without GPUs, which the Trainer runs by torchrun alone"
        )


def finetune(
    task: str,
    model: str,
    train: Sequence[str],
    out: str | Path,
    dev: Sequence[str] = (),
    test: Sequence[str] = (),
    recipe: str = "zero-shot",
    language: str | None = None,
    code_switch: float = 0.0,
    seeds: int = 1,
    first_seed: int = 0,
    max_tokens: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    max_rejected: float = 0.05,
    metric: str = "mlqa",
    deepspeed: str | Path | None = None,
    dump_switched: str | Path | None = None,
) -> dict[str, Any]:
    """Fine-tunes an encoder on a task with transformers' Trainer, once for each seed, and scores it by language.

    Args:
        task: "nli", "qa" or "classify".
        model: name or folder of a Hugging Face encoder.
        train: row-parallel files such as ``en:FILE``. All of them are read, and a row that is unusable in one is left
            out in all, so that recipes with and without switching see the same rows.
        out: a new folder, or what an earlier start with these settings left there: seeds that are done are not run
            again, one that was cut off goes on from its last epoch.
        dev: the epoch with the best mean score on these files is kept; without them, the last. For zero-shot, English.
        test: the files to score.
        recipe: "zero-shot" (train on English), "translate-train" (on ``language``), "translate-train-all" (on all).
        code_switch: the share of examples that are switched, see ``Mixture``.
        seeds, first_seed: how many, from which on.
        max_tokens, learning_rate, epochs, batch: None is the task's default. ``batch`` is a step's, of all ranks.
        micro_batch: of one forward of a rank; None is ``batch`` divided by the ranks.
        max_rejected: the share of training rows that may be unusable.
        metric: of question answering, "mlqa" or "squad".
        deepspeed: a DeepSpeed file with "auto" values, such as ds_configs/finetune.json.
        dump_switched: a file to write the training sets to, see ``dump``.

    Returns:
        The settings, ``languages`` and ``mean`` (see ``summarise``), ``runs`` (see ``run_seed``) and the number of
        ``rejected`` rows. ``out`` holds it as result.json, with table.md, rejected.tsv and a folder for each seed.

    Raises UserError for unusable files, settings that do not go together, and a folder that was begun with others.
    """
    if task not in TASKS:
        raise UserError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    kind = TASKS[task]
    files, dev_files, test_files = (
        parse_files(specs, flag) for specs, flag in ((train, "--train"), (dev, "--dev"), (test, "--test"))
    )
    mix = mixture(recipe, [*files], language, code_switch)
    if recipe == "zero-shot" and (foreign := [code for code in dev_files if not is_english(code)]):
        raise UserError(f"--dev {foreign[0]}: zero-shot selects its model in English; expected en:FILE alone")
    if deepspeed is not None:
        _check_deepspeed(Path(deepspeed))
    dump_file = output_file(dump_switched, "--dump-switched") if dump_switched is not None else None

    def default(value: Any, name: str) -> Any:
        return getattr(kind.defaults, name) if value is None else value

    settings = Settings(
        task=task,
        model=model,
        train={code: str(files[code]) for code in mix.codes},
        dev={code: str(path) for code, path in dev_files.items()},
        test={code: str(path) for code, path in test_files.items()},
        recipe=recipe,
        language=language,
        code_switch=code_switch,
        max_tokens=default(max_tokens, "max_tokens"),
        learning_rate=default(learning_rate, "learning_rate"),
        epochs=default(epochs, "epochs"),
        batch=default(batch, "batch"),
        max_rejected=max_rejected,
        metric=metric,
        fingerprints=_fingerprints(
            [
                *(path for each in (files, dev_files, test_files) for path in each.values()),
                *sorted(path for path in Path(model).glob("*") if path.suffix in _MODEL_FILES),
            ]
        ),
    )
    _check_numbers(settings, seeds, first_seed)
    micro, accumulation = cut(settings.batch, micro_batch)
    data = read_parallel({code: files[code] for code in mix.codes}, kind.read, max_rejected)
    config, tokenizer = load_pretrained(AutoConfig, model), load_tokenizer(model)
    if getattr(config, "type_vocab_size", 2) < 2:  # XLM-R's kin with a tokenizer that numbers segments, as BERT's does
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved beside the model
    job_task = kind(
        tokenizer,
        min(settings.max_tokens, max_sequence(config)),
        kind.labels_of(data.examples[mix.codes[0]]),
        **({"scoring": metric} if kind is Qa else {}),
    )
    dev_sets, test_sets = (
        {code: job_task.read_whole(path, code) for code, path in each.items()} for each in (dev_files, test_files)
    )
    job = Job(
        settings,
        job_task,
        data,
        mix,
        dev_sets,
        test_sets,
        micro,
        accumulation,
        Path(deepspeed) if deepspeed is not None else None,
    )
    folder = Path(out)
    if first_rank():
        _check_out(folder, settings)
        write_text(folder / "rejected.tsv", "".join(f"{reject}\n" for reject in data.rejected))
        listed = f" (listed in {folder / 'rejected.tsv'})" if data.rejected else ""
        counts = f"{len(data.rows):,} rows in {', '.join(mix.codes)}, {len(data.rejected):,} rejected{listed}"
        note(counts)
        if dump_file is not None:
            dump(job_task, data, mix, range(first_seed, first_seed + seeds), settings.epochs, dump_file)

    runs = []
    for seed in range(first_seed, first_seed + seeds):
        done = folder / f"seed-{seed}" / "result.json"
        runs.append(load_json(done) if done.is_file() else run_seed(job, seed, done.parent))
    result = {
        **asdict(settings),
        **summarise([run["test"] for run in runs]),
        "runs": runs,
        "rejected": len(data.rejected),
    }
    if first_rank():
        write_text(folder / "result.json", to_json(result))
        write_text(folder / "table.md", format_table(result, kind.scale) + "\n")
    return result
