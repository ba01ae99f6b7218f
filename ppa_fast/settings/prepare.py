"""Options of ``prepare``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from ppa_fast.errors import UserError
from ppa_fast.settings.options import ABOVE_0, REQUIRED, SHARE, Options, at_least, option
from ppa_fast.settings.train import TOKENS

PAIRS_HELP = (
    "en-de:FILE.en,FILE.de (line-parallel), en-fr:FILE (.tsv .csv .jsonl .tmx .xliff .po .parquet), both optionally "
    "compressed (.gz .bz2 .xz .zst), or en-de:hf:NAME[,CONFIG][:SPLIT] (data set); repeatable"
)


@dataclass(frozen=True)
class ReadOptions(Options):
    """Options for reading files.

    ``columns`` that are numbers are positions from 1 in a table without header. Formats without columns ignore them.
    """

    format: str | None = option(
        None, "tsv, csv, jsonl, tmx, xliff, po or parquet (default: by extension)", metavar="NAME"
    )
    columns: tuple[str, str] | None = option(
        None,
        "columns or fields of the two sides (default: the language codes); numbers from 1 for a table without header",
        metavar="A,B",
    )
    score_column: str | None = option(None, "column, field or TMX property with the alignment score", metavar="NAME")


@dataclass(frozen=True)
class Filters(Options):
    """Filters of pairs. Picklable.

    Raises UserError for a value out of range, an invalid regular expression, or missing py3langid.
    """

    length_ratio: float | None = option(
        None,
        "drop pairs with one side more than X times as long as the other, in characters; a Chinese, Japanese or Korean "
        "character counts as 3; X = 3 keeps 99.9 % of the correct pairs in 14 languages",
        at_least(1),
        metavar="X",
    )
    min_length: int | None = option(None, "drop pairs with a side shorter than N characters", at_least(1), metavar="N")
    max_length: int | None = option(None, "drop pairs with a side longer than N characters", at_least(1), metavar="N")
    drop_identical: bool = option(False, "drop pairs with equal sides, ignoring case")
    keep_match: tuple[str, ...] = option(
        (),
        "drop pairs unless both sides match (Python's re; repeatable: each expression must match)",
        metavar="REGEX",
    )
    drop_match: tuple[str, ...] = option((), "drop pairs if a side matches (repeatable)", metavar="REGEX")
    min_score: float | None = option(
        None, "drop pairs with a score below X in --score-column, or without a score", metavar="X"
    )
    exclude: tuple[str, ...] = option(
        (),
        "drop pairs that share a sentence, in any language, with these evaluation sets: en-de:dev.en,dev.de …",
        metavar="SPEC",
    )
    language_id: bool = option(
        False,
        "drop pairs with a side in another language (needs py3langid, the extra 'langid'); takes three times as long "
        "as tokenizing",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise UserError(f"min_length: found {self.min_length}, expected at most max_length, {self.max_length}")
        for name in ("keep_match", "drop_match"):
            for expression in getattr(self, name):
                try:
                    re.compile(expression)
                except re.error as error:
                    at = "" if error.pos is None else f" at character {error.pos + 1}"
                    raise UserError(
                        f"{name}: found {expression!r}, expected a regular expression: {error.msg}{at}"
                    ) from error
        if self.language_id and find_spec("py3langid") is None:
            raise UserError("language_id: needs the package py3langid: pip install 'ppa-fast[langid]'")


@dataclass(frozen=True)
class PrepareSettings(Options):
    """Options of ``prepare``."""

    NEEDS: ClassVar = {"pivots": "multi"}

    pairs: list[str] = option(REQUIRED, PAIRS_HELP, metavar="SPEC", required=False, default=[])
    tokenizer: str = option(REQUIRED, "name or folder of the model's fast tokenizer")
    out: str | Path = option(REQUIRED, "new folder, or the folder of an interrupted prepare to resume")
    max_tokens: int = option(126, "maximum tokens of a sentence, without special tokens", TOKENS, metavar="N")
    workers: int | None = option(
        None, "tokenizing processes (default: one for each core, at most 16)", at_least(1), metavar="N"
    )
    max_rejected: float = option(0.05, "maximum share of unusable records, checked at the end", SHARE, metavar="SHARE")
    max_unknown: float = option(
        0.5,
        "maximum share of unknown tokens in a sentence; pairs with a larger share are rejected, because the model "
        "cannot distinguish such sentences",
        SHARE,
        metavar="SHARE",
    )
    fraction: float = option(
        1.0,
        "share of the records to prepare, chosen at random; for a run that reads only a part of a large corpus",
        ABOVE_0,
        metavar="SHARE",
    )
    append: bool = option(False, "add rows to the complete store in --out, which must have the same tokenizer")
    options: ReadOptions = option(ReadOptions(), "")
    multi: list[list[str]] = option(
        [],
        "row-parallel files, one for each language; each pivot is paired with every other language; repeatable",
        metavar="LANG:FILE",
    )
    pivots: list[str] = option([], "pivot languages of --multi (default: en, else the first)", metavar="LANG")
    filters: Filters = option(
        Filters(),
        "Dropped pairs are counted by reason; STORE/dropped.json has samples. All filters are off by default.",
        group="filters",
    )
    deduplicate: bool = option(False, "drop duplicate pairs (always on for --multi)", group="filters")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pairs and not self.multi:
            raise UserError("pairs and multi: found neither, expected at least one of them")
