"""The command line ``ppa-fast VERB``: argument parsing only, with one module for each family of verbs."""

from __future__ import annotations

from collections.abc import Sequence

from ppa_fast import console
from ppa_fast.cli import data, evaluate, finetune, machine, models, results, train
from ppa_fast.cli.status import EXIT_STATUSES, run
from ppa_fast.cli.train import main_train
from ppa_fast.cli.verb import Parser, parse
from ppa_fast.version import __version__

__all__ = ["build_parser", "main", "main_train"]

FIRST_RUN = """a first run:
  ppa-fast align bert-base-multilingual-cased --pairs en-de:train.en,train.de --out aligned-mbert"""


def build_parser() -> Parser:
    """Builds the parser of ``ppa-fast``."""
    parser = Parser(
        prog="ppa-fast",
        description="Align multilingual encoders with parallel text.",
        epilog=f"{FIRST_RUN}\n\n{EXIT_STATUSES}",
    )
    parser.add_argument("--version", action="version", version=f"ppa-fast {__version__}")
    parser.set_defaults(work=lambda arguments: parser.print_help())  # without a verb
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for family in (data, models, train, evaluate, finetune, results, machine):
        family.add_verbs(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``ppa-fast`` command; returns the exit status."""
    console.show_any_character()
    arguments = parse(build_parser(), argv)
    return run(arguments.work, arguments)
