"""``ppa-fast finetune TASK``: argument parsing only."""

from __future__ import annotations

import argparse

from ppa_fast.cli.verb import Verbs, add_verb_of
from ppa_fast.settings import FinetuneSettings


def _finetune(settings: FinetuneSettings) -> None:
    from ppa_fast.tasks.finetuning import TASKS, finetune
    from ppa_fast.tasks.tables import format_seeds
    from ppa_fast.tasks.task import first_rank

    result = finetune(**vars(settings))
    if first_rank():
        print(format_seeds(result, TASKS[settings.task].scale))


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``finetune``."""
    parser = add_verb_of(
        FinetuneSettings,
        verbs,
        "finetune",
        "fine-tune an encoder on a task, with optional code-switching: natural language inference (TSV or JSON lines "
        "of XNLI and MultiNLI), question answering (SQuAD 1.1 JSON, joined by question id), text classification (TSV "
        "with the columns text and category or label, or JSON lines) or tagging of words (CoNLL, PAN-X, CoNLL-U, TSV)",
        "ppa-fast finetune nli --model aligned-mbert --train en:train.en.tsv de:train.de.tsv --code-switch 0.5 "
        "--dev en:dev.en.tsv --test en:test.en.tsv de:test.de.tsv --seeds 3 --out runs/switched\n"
        "ppa-fast finetune qa --model aligned-mbert --train en:train.json --test de:test.de.json --out runs/qa\n"
        "ppa-fast finetune tagging --model aligned-mbert --train en:train.conllu --test de:test.de.conllu "
        "--out runs/tagging",
        _finetune,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it
