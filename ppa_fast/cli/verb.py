"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Verbs = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it
PAIRS_HELP = "en-de:FILE.en,FILE.de (line-parallel) or en-fr:FILE.tsv (two columns); .gz too; repeatable"


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
