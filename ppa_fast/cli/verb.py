"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppa_fast.data.corpus import ReadOptions

Verbs = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it
PAIRS_HELP = (
    "en-de:FILE.en,FILE.de (line-parallel), en-fr:FILE (.tsv .csv .jsonl .tmx .xliff .po .parquet; .gz .bz2 .xz .zst "
    "too) or en-de:hf:NAME[,CONFIG][:SPLIT] (data set); repeatable"
)


def add_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    text: str,
    example: str,
    work: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    """The parser of a new verb, with ``text`` as its help and description, an example, and ``work`` to run."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(work=work)
    return parser


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """The flags of how the files of ``--pairs`` are read; :func:`read_options` gives them."""
    parser.add_argument(
        "--format", metavar="NAME", help="tsv, csv, jsonl, tmx, xliff, po or parquet (default: by the extension)"
    )
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="columns or fields of the two sides (default: their codes); numbers for a table without header",
    )
    parser.add_argument(
        "--score-column", metavar="NAME", help="column, field or TMX property with the score of the alignment"
    )


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What :func:`add_read_options` added, as given; raises UserError unless ``--columns`` are two."""
    from ppa_fast.data.corpus import ReadOptions
    from ppa_fast.errors import UserError

    columns = None if arguments.columns is None else arguments.columns.split(",")
    if columns is not None and (len(columns) != 2 or not all(columns)):
        raise UserError(f"--columns {arguments.columns}: expected two names, A,B")
    return ReadOptions(arguments.format, columns and (columns[0], columns[1]), arguments.score_column)
