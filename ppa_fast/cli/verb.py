"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppa_fast.errors import UserError
from ppa_fast.files import write_text

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


def check_json(path: str | None) -> None:
    """Raises UserError, before any work, where a ``--json`` file cannot be written."""
    if path and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        raise UserError(f"--json {path}: expected a file in a folder that exists")


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Writes a result to a ``--json`` file, if one is asked for; the file appears whole or not at all."""
    if path:
        write_text(Path(path), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
