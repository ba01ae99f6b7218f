"""``ppa-fast VERB``: argument parsing only; the work lives with its subject. A module for each family of verbs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ppa_fast import __version__
from ppa_fast.cli import data, evaluate, finetune, machine, models, results
from ppa_fast.cli.status import guarded
from ppa_fast.cli.train import main_train

__all__ = ["build_parser", "main", "main_train"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``ppa-fast``."""
    parser = argparse.ArgumentParser(
        prog="ppa-fast", description="Align multilingual encoders with parallel text. Training: see ppa_fast/train.py."
    )
    parser.add_argument("--version", action="version", version=f"ppa-fast {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for family in (data, models, evaluate, finetune, results, machine):
        family.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the ``ppa-fast`` command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return guarded(lambda: arguments.work(arguments), rank=int(os.environ.get("RANK", "0")))
