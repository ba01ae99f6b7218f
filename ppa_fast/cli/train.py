"""``ppa-fast align``, ``ppa-fast train`` (which launches the ranks) and ``ppa_fast/train.py`` (which every rank runs):
argument parsing only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ppa_fast import console
from ppa_fast.cli.status import run
from ppa_fast.cli.verb import Parser, Verbs, add_verb, add_verb_of, parse
from ppa_fast.settings import AlignSettings, LaunchSettings, Settings, add_arguments, from_arguments, given, to_flags


def _align(settings: AlignSettings) -> None:
    from ppa_fast.tasks.retrieval import format_table
    from ppa_fast.workflow import align

    result = align(**vars(settings))
    print(f"{format_table(result.after, result.before)}\n\nmodel in {result.folder}")
    if result.report.exists():
        print(f"report in {result.report}")


def _train(arguments: argparse.Namespace) -> None:
    chosen = from_arguments(Settings, arguments)
    from ppa_fast.training import launch

    output = {name: True for name in ("quiet", "debug") if getattr(arguments, name)}
    flags = to_flags({"settings": arguments.settings, **given(Settings, arguments), **output})
    sys.exit(launch.launch(chosen, flags, from_arguments(LaunchSettings, arguments)))


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``align`` and ``train``."""
    add_verb_of(
        AlignSettings,
        verbs,
        "align",
        "align an encoder with parallel text in one command: hold out an evaluation set, prepare, train, evaluate, "
        "export, report; the same command resumes",
        "ppa-fast align bert-base-multilingual-cased --pairs en-de:train.en,train.de --out aligned-mbert\n"
        "ppa-fast align xlm-roberta-base --pairs en-de:train.en,train.de en-fr:corpus.tsv --minutes 60 --out aligned",
        _align,
    )

    p = add_verb(
        verbs,
        "train",
        "align an encoder with parallel text on all GPUs, or on the CPU; prints and runs a deepspeed command",
        "ppa-fast train --model bert-base-multilingual-cased --data store --output runs/mbert\n"
        "ppa-fast train --settings runs/mbert/settings.yaml --output runs/again --num-gpus 2 --dry-run",
        _train,
        allow_abbrev=False,
    )
    add_arguments(p, LaunchSettings)
    add_arguments(p, Settings)


def main_train(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``ppa_fast/train.py``, which the launcher runs in every rank; returns the exit status."""
    console.show_any_character()
    parser = Parser(
        prog="deepspeed ppa_fast/train.py",
        description="Align an encoder with parallel text. Every setting is a flag and a key of the YAML file.",
        allow_abbrev=False,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it
    add_arguments(parser, Settings)

    def work(arguments: argparse.Namespace) -> None:
        chosen = from_arguments(Settings, arguments)
        from ppa_fast.training.trainer import train

        train(chosen)

    return run(work, parse(parser, argv))
