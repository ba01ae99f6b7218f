"""Parallel text as people have it: two line-parallel files or one two-column TSV for each language pair.

Files are read as bytes and split at ``\\n`` only (``str.splitlines`` would also split at U+2028 or U+0085, inside a
sentence, and shift everything behind it). A line is never held in memory whole before its length is known.
"""

from __future__ import annotations

import gzip
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path

import langcodes
import xxhash

from ppa_fast.errors import UserError

MAX_LINE_BYTES = 64 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

NOT_UTF8 = "not UTF-8"
EMPTY_SIDE = "empty side"
MISSING_TAB = "missing tab"
MORE_COLUMNS = "more than two columns"
LONG_LINE = "line over 64 KiB"

SPEC_FORMS = "'en-de:train.en,train.de' (two line-parallel files) or 'en-de:corpus.tsv' (two columns)"


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
        return 1 if standard_code(self.b) == "en" else 0


@dataclass(frozen=True)
class Reject:
    """A line that is no usable pair; ``line`` counts from 1, and ``str`` gives ``file:line: reason``."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


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


@lru_cache
def is_code(code: str) -> bool:
    """Whether a text is a language code of BCP-47, such as ``en`` or ``zh_Hant``; ``_`` is as good as ``-``."""
    return langcodes.tag_is_valid(code.replace("_", "-"))


@lru_cache
def standard_code(code: str) -> str:
    """A valid language code in BCP-47's letter case and shortest form (``eng`` is ``en``), ``_`` for ``-``."""
    return langcodes.standardize_tag(code.replace("_", "-")).replace("-", "_")


def base_language(code: str) -> str:
    """The language of a valid code without script and country: ``zh`` of ``zh_Hant``, ``en`` of ``eng``."""
    return standard_code(code).split("_")[0]


def is_english(code: str) -> bool:
    """Whether a valid code stands for English: ``en``, ``eng``, ``en_GB``."""
    return base_language(code) == "en"


def _check_readable(path: Path, spec: str) -> None:
    if not path.exists():
        raise UserError(f"--pairs {spec}: {path}: no such file")
    if not path.is_file():
        raise UserError(f"--pairs {spec}: {path} is not a regular file (the text is read twice: to count, to encode)")
    if not os.access(path, os.R_OK):
        raise UserError(f"--pairs {spec}: {path} cannot be read: permission denied")


@contextmanager
def open_bytes(path: Path) -> Iterator[BufferedIOBase]:
    """The file's bytes, unzipped if its name ends in ``.gz``; a broken gzip file is a UserError that names it."""
    if path.suffix != ".gz":
        with path.open("rb") as file:
            yield file
        return
    if path.stat().st_size == 0:  # the gzip module reads it as an empty text; a download that never began looks so
        raise UserError(f"{path}: broken gzip file: it is empty")
    try:
        with gzip.open(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip file: {error}") from error


def count_lines(path: Path) -> int:
    """The number of lines of a file; a last line without ``\\n`` counts.

    Raises:
        UserError: the file is a truncated or broken gzip file.
    """
    lines, last = 0, b"\n"
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def count_pairs(source: PairSource) -> int:
    """The number of lines of a source, good and bad ones.

    Raises:
        UserError: two files of unequal length; the message names both and both counts.
    """
    counts = [count_lines(path) for path in source.paths]
    if len(set(counts)) > 1:
        raise UserError(
            f"{source.name}: files of unequal length: {source.path_a} has {counts[0]:,} lines, "
            f"{source.path_b} has {counts[1]:,}; line i of both must be one sentence"
        )
    return counts[0]


def _byte_lines(path: Path) -> Iterator[bytes | None]:
    """The lines without their end; None for a line over ``MAX_LINE_BYTES``, which is skipped in pieces."""
    most = len(BYTE_ORDER_MARK) + MAX_LINE_BYTES + len(b"\r\n")
    with open_bytes(path) as file:
        first = True
        while piece := file.readline(most):
            line = piece
            while len(piece) == most and not piece.endswith(b"\n"):
                piece = file.readline(most)
            if first:
                line, first = line.removeprefix(BYTE_ORDER_MARK), False
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield line if len(line) <= MAX_LINE_BYTES else None


def decoded_lines(path: Path) -> Iterator[tuple[str, str]]:
    """``(text, "")`` of each line, without its end, or ``("", reason)``; a broken gzip file is a UserError."""
    for line in _byte_lines(path):
        if line is None:
            yield "", LONG_LINE
            continue
        try:
            yield line.decode("utf-8"), ""
        except UnicodeDecodeError:
            yield "", NOT_UTF8


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in which none may be bad, numbered from 1, without surrounding white space.

    Raises:
        UserError: a line that is not UTF-8 or too long, or a broken gzip file.
    """
    for number, (text, reason) in enumerate(decoded_lines(Path(path)), 1):
        if reason:
            raise UserError(f"{path}:{number}: {reason}")
        yield number, text.strip()


def read_lines(source: PairSource) -> Iterator[tuple[str, str] | Reject]:
    """One item for each line, in order: the two texts, stripped of surrounding white space, or why there are none.

    Two files are read up to the end of the shorter one: :func:`count_pairs` says beforehand whether they match.

    Raises:
        UserError: a file is a truncated or broken gzip file.
    """
    return _read_tsv(source.path_a) if source.path_b is None else _read_files(source.path_a, source.path_b)


def _read_tsv(path: Path) -> Iterator[tuple[str, str] | Reject]:
    for number, (text, reason) in enumerate(decoded_lines(path), 1):
        columns = [column.strip() for column in text.split("\t")]
        if not reason and len(columns) != 2:
            reason = MISSING_TAB if len(columns) < 2 else MORE_COLUMNS
        if not reason and not all(columns):
            reason = EMPTY_SIDE
        yield Reject(path, number, reason) if reason else (columns[0], columns[1])


def _read_files(path_a: Path, path_b: Path) -> Iterator[tuple[str, str] | Reject]:
    lines = zip(decoded_lines(path_a), decoded_lines(path_b), strict=False)
    for number, ((a, reason_a), (b, reason_b)) in enumerate(lines, 1):
        a, b = a.strip(), b.strip()
        if reason_a or not a:
            yield Reject(path_a, number, reason_a or EMPTY_SIDE)
        elif reason_b or not b:
            yield Reject(path_b, number, reason_b or EMPTY_SIDE)
        else:
            yield a, b


def read_pairs(source: PairSource, reject: Callable[[Path, int, str], None]) -> Iterator[tuple[str, str]]:
    """The usable pairs of a source in order; ``reject(file, line, reason)`` is called for each other line."""
    for item in read_lines(source):
        if isinstance(item, Reject):
            reject(item.path, item.line, item.reason)
        else:
            yield item


def read_texts(path: Path) -> Iterator[str | Reject]:
    """One item for each line of plain text that is not blank: the text, stripped, or why there is none.

    Raises:
        UserError: the file is a truncated or broken gzip file.
    """
    for number, (text, reason) in enumerate(decoded_lines(path), 1):
        if reason:
            yield Reject(path, number, reason)
        elif text := text.strip():
            yield text


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
    return source, [a for a, _ in pairs], [b for _, b in pairs]


def sentence_group(text: str) -> int:
    """The group that a pivot text names: XXH3-64 of its NFC form, stripped, in UTF-8, as a signed 64-bit integer.

    Pairs of one group are translations of one sentence, whatever their languages.
    """
    digest = xxhash.xxh3_64_intdigest(unicodedata.normalize("NFC", text).strip().encode("utf-8"))
    return digest - (1 << 64) if digest >> 63 else digest
