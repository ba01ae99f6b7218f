"""Training: ``ppa-fast train``, which launches the ranks, and ``ppa_fast/train.py``, which each of them runs; argument
parsing only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ppa_fast import settings
from ppa_fast.cli.status import run
from ppa_fast.cli.verb import Parser, Verbs, add_verb, parse


def _train(arguments: argparse.Namespace) -> None:
    chosen = settings.from_arguments(arguments)
    from ppa_fast.training import launch

    flags = settings.to_flags(arguments) + [f"--{name}" for name in ("quiet", "debug") if getattr(arguments, name)]
    sys.exit(launch.launch(chosen, flags, arguments.num_gpus, arguments.hostfile, arguments.dry_run))


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds ``train``."""
    p = add_verb(
        verbs,
        "train",
        "align an encoder with a token store on what this machine has, by the deepspeed command that is printed",
        "ppa-fast train --model bert-base-multilingual-cased --data store --output runs/mbert\n"
        "ppa-fast train --settings runs/mbert/settings.yaml --output runs/again --num-gpus 2 --dry-run",
        _train,
        allow_abbrev=False,
    )
    p.add_argument("--dry-run", action="store_true", help="print the command and run nothing")
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--num-gpus", "--num_gpus", type=int, metavar="N", help="ranks (default: one for each GPU; on a CPU one)"
    )
    where.add_argument("--hostfile", metavar="FILE", help="several nodes: lines such as 'node1 slots=8'")
    settings.add_arguments(p)


def main_train(argv: Sequence[str] | None = None) -> int:
    """Entry of ``ppa_fast/train.py``, run in every rank by the deepspeed launcher; returns the exit status."""
    parser = Parser(
        prog="deepspeed ppa_fast/train.py",
        description="Align an encoder with a token store. Every setting is a flag and a key of the YAML file.",
        allow_abbrev=False,
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher adds it
    settings.add_arguments(parser)

    def work(arguments: argparse.Namespace) -> None:
        chosen = settings.from_arguments(arguments)
        from ppa_fast.training.loop import train

        train(chosen)

    return run(work, parse(parser, argv))
