"""``ppa-fast finetune``: fine-tunes an encoder for each seed and scores it by language."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ppa_fast.data.reading.languages import is_english, parse_files
from ppa_fast.data.store.tokenize import load_tokenizer
from ppa_fast.errors import UserError
from ppa_fast.files import MODEL_FILES, check_new_folder, fingerprint, output_file, write_errors, write_json, write_text
from ppa_fast.hub import load_pretrained
from ppa_fast.model.encoder import encoder_config, max_sequence
from ppa_fast.model.precision import has_fast_bf16
from ppa_fast.ranks import check_ranks
from ppa_fast.settings import FinetuneSettings, takes
from ppa_fast.tasks.classification import TextClassificationTask
from ppa_fast.tasks.code_switching import dump, mixture_of
from ppa_fast.tasks.nli import NliTask
from ppa_fast.tasks.parallel import read_parallel
from ppa_fast.tasks.question_answering import QuestionAnsweringTask
from ppa_fast.tasks.reading import load_json
from ppa_fast.tasks.seed_trainer import FineTuningRun, FineTuningSettings, run_seed, split_batch
from ppa_fast.tasks.tables import format_seeds, summarise
from ppa_fast.tasks.tagging import TaggingTask
from ppa_fast.tasks.task import Task, first_rank

log = logging.getLogger(__name__)

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (NliTask, QuestionAnsweringTask, TextClassificationTask, TaggingTask)
}


def _fingerprints(files: Sequence[Path]) -> dict[str, str]:
    """XXH3-64 of each file, by name; raises OSError if a file cannot be read."""
    return {str(path): fingerprint(path) for path in files}


def _check_out(out: Path, settings: FineTuningSettings) -> None:
    """Creates the output folder, or checks that an existing one has the same settings and files."""
    path, wanted = out / "settings.json", asdict(settings)
    if not path.is_file():
        check_new_folder(out)
        with write_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
        return
    found = {"bf16": settings.bf16} | load_json(path)  # older versions did not write bf16
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        if name == "fingerprints":
            changed = sorted({file for file, _ in {*found[name].items()} ^ {*value.items()}})
            raise UserError(f"--out {out}: started before {', '.join(changed)} changed; choose a new folder")
        raise UserError(f"--out {out}: {name}: found {found.get(name)}, expected {value}; choose a new folder")


def _bf16(out: Path, model: str) -> bool:
    """Whether to use bf16 matrix products: as in an existing run in ``out``, else if bf16 is faster here."""
    path = out / "settings.json"
    if path.is_file():
        started_with: bool = load_json(path).get("bf16", torch.cuda.is_available())
        return started_with
    return torch.cuda.is_available() or has_fast_bf16(encoder_config(model).hidden_size)


def _check_deepspeed(path: Path) -> None:
    """Raises UserError if transformers' Trainer cannot start DeepSpeed."""
    load_json(path)  # DeepSpeed accepts comments, the Trainer does not
    if "RANK" not in os.environ:
        raise UserError(
            f"--deepspeed {path}: found no RANK; start with deepspeed --no_python --no_local_rank ppa-fast finetune …"
        )
    if os.environ.get("WORLD_SIZE", "1") != "1" and not torch.cuda.is_available():
        raise UserError(
            f"--deepspeed {path}: found several ranks without GPUs, expected one; use torchrun without --deepspeed"
        )


@takes(FinetuneSettings)
def finetune(options: FinetuneSettings) -> dict[str, Any]:
    """Fine-tunes an encoder on a task with transformers' Trainer, once per seed, and scores it by language.

    Reads all files of ``options.train``. A row that is unusable in one language is dropped in all, so that recipes with
    and without switching train on the same rows. If ``out`` contains a run with the same options, finished seeds are
    skipped and an interrupted seed resumes from its last epoch. ``code_switch`` is the share of ``Mixture``;
    ``dump_switched`` is the file for ``code_switching.dump``.

    Returns:
        The settings, ``languages`` and ``mean`` (see ``summarise``), ``n`` (scored examples by language), ``runs`` (see
        ``run_seed``) and the number of ``rejected`` rows. ``out`` contains them as result.json, with table.md,
        rejected.tsv and a folder per seed.

    Raises UserError for unusable files, incompatible settings, and an output folder of a run with other settings.
    """
    check_ranks()
    task, model, out = options.task, options.model, Path(options.out)
    kind, max_rejected = TASKS[task], options.max_rejected
    files, dev_files, test_files = (
        parse_files(getattr(options, name), f"--{name}") for name in ("train", "dev", "test")
    )
    mixture = mixture_of(options.recipe, [*files], options.language, options.code_switch)
    if options.recipe == "zero-shot" and (foreign := [code for code in dev_files if not is_english(code)]):
        raise UserError(f"--dev: found {foreign[0]}, expected only en:FILE, in which zero-shot selects its model")
    config_file = None if options.deepspeed is None else Path(options.deepspeed)
    if config_file:
        _check_deepspeed(config_file)
    dump_file = None if options.dump_switched is None else output_file(options.dump_switched, "--dump-switched")

    given = {name: getattr(options, name) for name in ("max_tokens", "learning_rate", "epochs", "batch")}
    settings = FineTuningSettings(
        task=task,
        model=model,
        train={code: str(files[code]) for code in mixture.codes},
        dev={code: str(path) for code, path in dev_files.items()},
        test={code: str(path) for code, path in test_files.items()},
        recipe=options.recipe,
        language=options.language,
        code_switch=options.code_switch,
        **{name: getattr(kind.defaults, name) if value is None else value for name, value in given.items()},
        max_rejected=max_rejected,
        metric=options.metric,
        bf16=_bf16(out, model),
        fingerprints=_fingerprints(
            [
                *(path for each in (files, dev_files, test_files) for path in each.values()),
                *sorted(path for path in Path(model).glob("*") if path.suffix in MODEL_FILES),
            ]
        ),
    )
    micro, accumulation = split_batch(settings.batch, options.micro_batch)
    data = read_parallel({code: files[code] for code in mixture.codes}, kind.read, max_rejected)
    config, tokenizer = load_pretrained(AutoConfig, model), load_tokenizer(model)
    if getattr(config, "type_vocab_size", 2) < 2:  # a model without token types, such as XLM-R
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # saved with the model
    labels = kind.labels_of([*chain(*data.examples.values())])
    bound_task = kind.for_labels(labels)(
        tokenizer,
        min(settings.max_tokens, max_sequence(config)),
        labels,
        **({"scoring": options.metric} if kind is QuestionAnsweringTask else {}),
    )
    dev_sets, test_sets = (
        {code: kind.read_evaluation_set(path, code, bound_task.labels)[0] for code, path in each.items()}
        for each in (dev_files, test_files)
    )
    run = FineTuningRun(settings, bound_task, data, mixture, dev_sets, test_sets, micro, accumulation, config_file)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if first_rank():
        _check_out(out, settings)
        write_text(out / "rejected.tsv", "".join(f"{reject}\n" for reject in data.rejected))
        listed = f" (listed in {out / 'rejected.tsv'})" if data.rejected else ""
        log.info(f"{len(data.rows):,} rows in {', '.join(mixture.codes)}, {len(data.rejected):,} rejected{listed}")
        if dump_file is not None:
            dump(bound_task, data, mixture, seeds, settings.epochs, dump_file)

    runs = []
    for seed in seeds:
        done = out / f"seed-{seed}" / "result.json"
        runs.append(load_json(done) if done.is_file() else run_seed(run, seed, done.parent))
    result = {
        **asdict(settings),
        **summarise([each["test"] for each in runs]),
        "n": {code: len(examples) for code, examples in test_sets.items()},
        "runs": runs,
        "rejected": len(data.rejected),
    }
    if first_rank():
        write_json(out / "result.json", result)
        write_text(out / "table.md", format_seeds(result, kind.scale) + "\n")
    return result
