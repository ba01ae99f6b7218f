"""Lines of text files, plain or compressed, none of them taken for good before it is read.

Files are read as bytes and split at ``\\n`` only (``str.splitlines`` would also split at U+2028 or U+0085, inside a
sentence, and shift everything behind it). A line is never held in memory whole before its length is known.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from ppa_fast.errors import UserError

MAX_LINE_BYTES = 64 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

NOT_UTF8 = "not UTF-8"
LONG_LINE = "line over 64 KiB"


@dataclass(frozen=True)
class Reject:
    """A line that is no usable pair; ``line`` counts from 1, and ``str`` gives ``file:line: reason``."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


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
