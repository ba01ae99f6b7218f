"""What a reader of parallel text gets and gives: a source in, one item for each record out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from ppa_fast.data.compression import Meter
from ppa_fast.data.languages import is_code, standard_code
from ppa_fast.data.lines import MAX_LINE_BYTES, NUL, Reject

EMPTY_SIDE = "empty side"
NO_STRING = "text is no string"
LONG_TEXT = "text over 64 KiB"
LONE_SURROGATE = "lone surrogate"
BAD_SCORE = "score is no number"
UNTRANSLATED = "untranslated"
FUZZY = "fuzzy"
OBSOLETE = "obsolete"
OTHER_LANGUAGES = "other languages"


class Pair(NamedTuple):
    """A translation pair, both texts stripped of surrounding white space and neither empty.

    ``pivot`` is the text that names the group (:func:`sentence_group`). ``score`` is what the corpus says of the
    alignment's quality, None where it says nothing.
    """

    a: str
    b: str
    pivot: str
    score: float | None = None


@dataclass(frozen=True)
class Drop:
    """A record that is sound but not wanted: untranslated, filtered, a duplicate. Counted by ``reason``, with samples;
    it does not count as a bad line. ``record`` is the record's number in its file, from 1."""

    path: Path
    record: int
    reason: str
    a: str = ""
    b: str = ""


Item = Pair | Drop | Reject


class Source(Protocol):
    """The text of one language pair. ``a`` and ``b`` are codes as the user spells them, ``name`` is ``en-de``."""

    @property
    def a(self) -> str: ...

    @property
    def b(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def paths(self) -> list[Path]:
        """The files that are read; of a data set its name."""

    @property
    def bytes_total(self) -> int | None:
        """The size of the files as they lie on the disk; None where it is not known beforehand."""

    @property
    def bytes_read(self) -> int:
        """How much of ``bytes_total`` the latest :meth:`read` has read so far."""

    def read(self) -> Iterator[Item]:
        """One item for each record, in order; raises UserError for a file that is broken as a whole."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read, where their names do not say it.

    ``format`` is one of :data:`ppa_fast.data.formats.READERS`, by default the extension's. ``columns`` names the
    columns or fields of sides a and b, by default the language codes; all digits are positions from 1 in a table
    without header. ``score_column`` names that of the alignment's score. Formats without columns ignore them.
    """

    format: str | None = None
    columns: tuple[str, str] | None = None
    score_column: str | None = None


AS_NAMED = ReadOptions()


@dataclass(frozen=True)
class PairSource:
    """The text of one language pair in files that ``reader`` reads.

    ``a`` and ``b`` are language codes as the user spells them: what goes in comes out in tables and JSON.
    """

    a: str
    b: str
    paths: list[Path]
    reader: Callable[[PairSource], Iterator[Item]]
    options: ReadOptions = AS_NAMED
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The language pair, as in ``en-de`` or ``zh_Hant-en``."""
        return f"{self.a}-{self.b}"

    @cached_property
    def pivot(self) -> int:
        """The side (0: a, 1: b) whose text names the group: English if it is one of the two, else side a."""
        return 1 if is_code(self.b) and standard_code(self.b) == "en" else 0

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the columns or fields of sides a and b."""
        return self.options.columns or (self.a, self.b)

    @property
    def bytes_total(self) -> int | None:
        """The size of the files, packed as they are; None for a dataset, whose size is not known beforehand."""
        return sum(path.stat().st_size for path in self.paths) if all(path.is_file() for path in self.paths) else None

    @property
    def bytes_read(self) -> int:
        """How much of ``bytes_total`` the latest :meth:`read` has read so far."""
        return self.meter.bytes

    def read(self) -> Iterator[Item]:
        """One item for each record, in order.

        Raises:
            UserError: a file is broken as a whole, or two line-parallel files are of unequal length.
        """
        self.meter.bytes = 0
        return self.reader(self)

    def item(self, record: int, a: object, b: object, score: object = None) -> Pair | Reject:
        """What the texts of a record of a single file make: a pair, or a reject where one is no usable text."""
        reason = _flaw(a) or _flaw(b)
        value = None
        if not reason and score is not None and score != "":
            value = _number(score)
            reason = BAD_SCORE if value is None else ""
        if reason or not isinstance(a, str) or not isinstance(b, str):
            return Reject(self.paths[0], record, reason)
        a, b = a.strip(), b.strip()
        return Pair(a, b, b if self.pivot else a, value)

    def translation(self, record: int, a: str | None, b: str | None, score: object = None) -> Item:
        """:meth:`item` for formats in which a missing or empty text means: not translated, and is no fault."""
        if not (a or "").strip() or not (b or "").strip():
            return Drop(self.paths[0], record, UNTRANSLATED, a or "", b or "")
        return self.item(record, a, b, score)


def _flaw(text: object) -> str:
    """Why a record's field is no usable text; empty if it is one."""
    if text is None:
        return EMPTY_SIDE
    if not isinstance(text, str):
        return NO_STRING
    if not text or text.isspace():
        return EMPTY_SIDE
    if "\0" in text:
        return NUL
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # JSON can spell half of a character: "\ud800"
        return LONE_SURROGATE
    return LONG_TEXT if size > MAX_LINE_BYTES else ""


def _number(score: object) -> float | None:
    try:
        value = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
