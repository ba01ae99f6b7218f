"""Parallel text as people have it: two line-parallel files or one two-column TSV for each language pair.

A source gives one item for each record of its text (a line, a row, a unit), in order: a :class:`Pair`, a
:class:`Drop` or a :class:`Reject`. Whoever reads a source again and skips the first n items is where it was.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import xxhash

from ppa_fast.data.languages import is_code, standard_code
from ppa_fast.data.lines import Reject, count_lines, decoded_lines
from ppa_fast.errors import UserError

EMPTY_SIDE = "empty side"
MISSING_TAB = "missing tab"
MORE_COLUMNS = "more than two columns"

SPEC_FORMS = "'en-de:train.en,train.de' (two line-parallel files) or 'en-de:corpus.tsv' (two columns)"


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
        """The files that are read."""

    def read(self) -> Iterator[Item]:
        """One item for each record, in order; raises UserError for a file that is broken as a whole."""


@dataclass(frozen=True)
class PairSource:
    """The text of one language pair: line-parallel files, or a two-column TSV if ``path_b`` is None.

    ``a`` and ``b`` are language codes as the user spells them: what goes in comes out in tables and JSON.
    """

    a: str
    b: str
    path_a: Path
    path_b: Path | None

    @property
    def name(self) -> str:
        """The language pair, as in ``en-de`` or ``zh_Hant-en``."""
        return f"{self.a}-{self.b}"

    @property
    def paths(self) -> list[Path]:
        """The one or two files that are read."""
        return [self.path_a] if self.path_b is None else [self.path_a, self.path_b]

    @property
    def pivot(self) -> int:
        """The side (0: a, 1: b) whose text names the group: English if it is one of the two, else side a."""
        return 1 if is_code(self.b) and standard_code(self.b) == "en" else 0

    def read(self) -> Iterator[Item]:
        """One item for each line, in order.

        Two files are read up to the end of the shorter one: :func:`count_pairs` says beforehand whether they match.

        Raises:
            UserError: a file is a truncated or broken gzip file.
        """
        return self._read_tsv() if self.path_b is None else self._read_files(self.path_b)

    def _pair(self, a: str, b: str) -> Pair:
        return Pair(a, b, b if self.pivot else a)

    def _read_tsv(self) -> Iterator[Item]:
        for number, (text, reason) in enumerate(decoded_lines(self.path_a), 1):
            columns = [column.strip() for column in text.split("\t")]
            if not reason and len(columns) != 2:
                reason = MISSING_TAB if len(columns) < 2 else MORE_COLUMNS
            if not reason and not all(columns):
                reason = EMPTY_SIDE
            yield Reject(self.path_a, number, reason) if reason else self._pair(columns[0], columns[1])

    def _read_files(self, path_b: Path) -> Iterator[Item]:
        lines = zip(decoded_lines(self.path_a), decoded_lines(path_b), strict=False)
        for number, ((a, reason_a), (b, reason_b)) in enumerate(lines, 1):
            a, b = a.strip(), b.strip()
            if reason_a or not a:
                yield Reject(self.path_a, number, reason_a or EMPTY_SIDE)
            elif reason_b or not b:
                yield Reject(path_b, number, reason_b or EMPTY_SIDE)
            else:
                yield self._pair(a, b)


def parse_pairs(spec: str) -> PairSource:
    """Reads one ``--pairs`` argument, ``en-de:train.en,train.de`` or ``en-fr:corpus.tsv``.

    Raises:
        UserError: bad syntax, an unknown language code, twice the same language, or a file that cannot be read.
    """
    names, colon, files = spec.partition(":")
    codes, paths = names.split("-"), files.split(",")
    if not colon or len(codes) != 2 or len(paths) > 2 or not all(paths):
        hint = "; inside a language code write '_' for '-', as in zh_Hant-en" if len(codes) > 2 else ""
        raise UserError(f"--pairs {spec}: expected {SPEC_FORMS}{hint}")
    for code in codes:
        if not is_code(code):
            raise UserError(
                f"--pairs {spec}: unknown language code {code!r}, expected a BCP-47 code such as en or zh_Hant"
            )
    a, b = codes
    if standard_code(a) == standard_code(b):
        raise UserError(f"--pairs {spec}: both sides are {standard_code(a)}, expected two different languages")
    for path in map(Path, paths):
        _check_readable(path, spec)
    return PairSource(a, b, Path(paths[0]), Path(paths[1]) if len(paths) == 2 else None)


def _check_readable(path: Path, spec: str) -> None:
    if not path.exists():
        raise UserError(f"--pairs {spec}: {path}: no such file")
    if not path.is_file():
        raise UserError(f"--pairs {spec}: {path} is not a regular file (the text is read twice: to count, to encode)")
    if not os.access(path, os.R_OK):
        raise UserError(f"--pairs {spec}: {path} cannot be read: permission denied")


def count_pairs(source: Source) -> int:
    """The number of lines of a source, good and bad ones.

    Raises:
        UserError: two files of unequal length; the message names both and both counts.
    """
    counts = [count_lines(path) for path in source.paths]
    if len(set(counts)) > 1:
        found = ", ".join(f"{path} has {lines:,} lines" for path, lines in zip(source.paths, counts, strict=True))
        raise UserError(f"{source.name}: files of unequal length: {found}; line i of all must be one sentence")
    return counts[0]


def read_pairs(source: Source, reject: Callable[[Path, int, str], None]) -> Iterator[Pair]:
    """The usable pairs of a source in order; ``reject(file, line, reason)`` is called for each other record."""
    for item in source.read():
        if isinstance(item, Pair):
            yield item
        else:
            reject(item.path, item.record if isinstance(item, Drop) else item.line, item.reason)


def read_eval_pairs(spec: str) -> tuple[PairSource, list[str], list[str]]:
    """An evaluation set in memory: the source, the texts of side a, the texts of side b.

    Raises:
        UserError: what :func:`parse_pairs` and :func:`count_pairs` raise; no lines; or any bad line, the first of which
            is named: a score over whatever was left could not be compared with another.
    """
    source = parse_pairs(spec)
    if count_pairs(source) == 0:
        raise UserError(f"--pairs {spec}: no lines, nothing to evaluate")

    def reject(path: Path, line: int, reason: str) -> None:
        raise UserError(f"{Reject(path, line, reason)} (an evaluation set must have no bad line)")

    pairs = list(read_pairs(source, reject))
    return source, [pair.a for pair in pairs], [pair.b for pair in pairs]


def sentence_group(text: str) -> int:
    """The group that a pivot text names: XXH3-64 of its NFC form, stripped, in UTF-8, as a signed 64-bit integer.

    Pairs of one group are translations of one sentence, whatever their languages.
    """
    digest = xxhash.xxh3_64_intdigest(unicodedata.normalize("NFC", text).strip().encode("utf-8"))
    return digest - (1 << 64) if digest >> 63 else digest
