"""The input and output of readers of parallel text: a source, and one item for each record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from ppa_fast.data.reading.compression import Meter
from ppa_fast.data.reading.languages import is_code, is_english
from ppa_fast.data.reading.lines import MAX_LINE_BYTES, NOT_UTF8, NUL, Reject
from ppa_fast.settings import ReadOptions

EMPTY_SIDE = "empty side"
NO_STRING = "text is not a string"
LONG_TEXT = "text over 64 KiB"
LONE_SURROGATE = "lone surrogate"
BAD_CHARACTER = "invalid character"
BAD_CHARACTER_MARK = "\ufdd0"  # Unicode's noncharacter for internal use: readers put it where a text is damaged
BAD_SCORE = "score is not a number"
UNTRANSLATED = "untranslated"
FUZZY = "fuzzy"
OBSOLETE = "obsolete"
OTHER_LANGUAGES = "other languages"


class Pair(NamedTuple):
    """A translation pair; both texts are stripped and not empty.

    ``pivot`` is the text that determines the group (:func:`groups.sentence_group`). ``score`` is the alignment score in
    the corpus, or None.
    """

    a: str
    b: str
    pivot: str
    score: float | None = None


@dataclass(frozen=True)
class Drop:
    """A valid record that is dropped because it is untranslated, filtered or a duplicate; it is not a reject.

    ``record`` is the record's number in its file, from 1.
    """

    path: Path
    record: int
    reason: str
    a: str = ""
    b: str = ""


Item = Pair | Drop | Reject


class Source(Protocol):
    """The text of one language pair. ``a`` and ``b`` are language codes as the user wrote them; ``name`` is ``a-b``."""

    @property
    def a(self) -> str: ...

    @property
    def b(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def paths(self) -> list[Path]:
        """The files to read, or the name of a data set."""

    @property
    def bytes_total(self) -> int | None:
        """The size of the files on disk; None if it is unknown."""

    @property
    def bytes_read(self) -> int:
        """The bytes that the latest :meth:`read` has read so far."""

    def read(self) -> Iterator[Item]:
        """Yields one item for each record, in order; raises UserError if a file cannot be read."""


AS_NAMED = ReadOptions()


@dataclass(frozen=True)
class PairSource:
    """The text of one language pair in files that ``reader`` reads.

    ``a`` and ``b`` are language codes as the user wrote them; tables and JSON show them unchanged.
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
        """The side (0: a, 1: b) whose text determines the group: English of any region if present, else side a."""
        english = [is_code(code) and is_english(code) for code in (self.a, self.b)]
        return 1 if english == [False, True] else 0

    @property
    def columns(self) -> tuple[str, str]:
        """The names of the columns or fields of the sides a and b."""
        return self.options.columns or (self.a, self.b)

    @property
    def bytes_total(self) -> int | None:
        """The size of the files on disk; None for a data set, whose size is unknown."""
        return sum(path.stat().st_size for path in self.paths) if all(path.is_file() for path in self.paths) else None

    @property
    def bytes_read(self) -> int:
        """The bytes that the latest :meth:`read` has read so far."""
        return self.meter.bytes

    def read(self) -> Iterator[Item]:
        """Yields one item for each record, in order.

        Raises:
            UserError: a file cannot be read, or two line-parallel files have unequal lengths.
        """
        self.meter.bytes = 0
        return self.reader(self)

    def item(self, record: int, a: object, b: object, score: object = None) -> Pair | Reject:
        """Returns the pair of a record's texts, or a reject if a text or the score is unusable."""
        reason = _rejection_reason(a) or _rejection_reason(b)
        value = None
        if not reason and score is not None and score != "":
            value = _number(score)
            reason = BAD_SCORE if value is None else ""
        if reason or not isinstance(a, str) or not isinstance(b, str):
            return Reject(self.paths[0], record, reason)
        a, b = a.strip(), b.strip()
        return Pair(a, b, b if self.pivot else a, value)

    def translation(self, record: int, a: str | None, b: str | None, score: object = None) -> Item:
        """As :meth:`item`, but a missing or empty text is a drop: in some formats it means "not translated"."""
        if not (a or "").strip() or not (b or "").strip():
            return Drop(self.paths[0], record, UNTRANSLATED, a or "", b or "")
        return self.item(record, a, b, score)


def _rejection_reason(text: object) -> str:
    """Returns the reason why a record's field is not a usable text, or ""."""
    if text is None:
        return EMPTY_SIDE
    if not isinstance(text, str):
        return NOT_UTF8 if isinstance(text, bytes) else NO_STRING
    if not text or text.isspace():
        return EMPTY_SIDE
    if "\0" in text:
        return NUL
    if BAD_CHARACTER_MARK in text:
        return BAD_CHARACTER
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # JSON can contain half of a character: "\ud800"
        return LONE_SURROGATE
    return LONG_TEXT if size > MAX_LINE_BYTES else ""


def _number(score: object) -> float | None:
    try:
        value = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
