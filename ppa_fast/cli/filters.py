"""The options of ``ppa-fast prepare`` that say which pairs of a corpus are wanted."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppa_fast.data.filters import Filters


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of :class:`Filters` and ``--deduplicate``."""
    p = parser.add_argument_group(
        "filters", "What they drop is counted by reason; STORE/dropped.json has samples. All are off by default."
    )
    p.add_argument(
        "--length-ratio",
        type=float,
        metavar="X",
        help="drop pairs with one side over X times as long as the other, in characters (a Chinese, Japanese or Korean "
        "one counts as 3); 3 keeps 999 good pairs of 1,000 in 14 languages",
    )
    p.add_argument("--min-length", type=int, metavar="N", help="drop pairs with a side under N such characters")
    p.add_argument("--max-length", type=int, metavar="N", help="drop pairs with a side over N such characters")
    p.add_argument("--drop-identical", action="store_true", help="drop pairs of two equal sides, whatever their case")
    p.add_argument(
        "--keep-match",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGEX",
        help="drop pairs unless both sides have a match (Python's re; repeatable: each is looked for)",
    )
    p.add_argument(
        "--drop-match",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGEX",
        help="drop pairs with a match in a side",
    )
    p.add_argument(
        "--min-score",
        type=float,
        metavar="X",
        help="drop pairs whose score in the corpus is under X, or that have none",
    )
    p.add_argument(
        "--language-id",
        action="store_true",
        help="drop pairs with a side in another language (py3langid: extra 'langid'; thrice the time of encoding)",
    )
    p.add_argument(
        "--deduplicate", action="store_true", help="drop pairs that came before (those of --multi always are)"
    )


def chosen_filters(arguments: argparse.Namespace) -> Filters:
    """The filters that the flags say; raises UserError for a bad value."""
    from ppa_fast.data.filters import Filters

    values: dict[str, Any] = {field.name: getattr(arguments, field.name) for field in fields(Filters)}
    for name in ("keep_match", "drop_match"):
        values[name] = tuple(values[name])
    return Filters(**values)
