"""Reads and validates the lines of text files, plain or compressed.

Files are read as bytes and split at ``\\n`` only: ``str.splitlines`` would also split at U+2028 or U+0085 inside a
sentence and shift all later lines. Blocks of valid lines are decoded at once. A line that is too long is never held in
memory completely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ppa_fast.data.reading.compression import Meter, open_bytes
from ppa_fast.errors import UserError

MAX_LINE_BYTES = 64 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = {b"\xff\xfe": b"\n\0", b"\xfe\xff": b"\0\n"}  # byte order mark → end of line
BLOCK_BYTES = 256 * 1024

NOT_UTF8 = "not UTF-8"
NUL = "NUL character"
LONG_LINE = "line over 64 KiB"


@dataclass(frozen=True)
class Reject:
    """An unusable record; ``str`` gives ``file:line: reason``.

    ``line`` is the record's number in its file, from 1. In line-based files without a header it is the line number.
    """

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def count_lines(path: Path) -> int:
    """Counts the lines of a file; a last line without ``\\n`` counts.

    Raises:
        UserError: the file is a truncated or broken archive.
    """
    lines, last = 0, b"\n"
    with open_bytes(path) as file:
        while block := file.read(BLOCK_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _is_utf_16(start: bytes) -> bool:
    """Checks the byte order mark and all line ends, because a damaged first line may look like the mark."""
    end = UTF_16.get(start[:2])
    return end is not None and 0 < start.count(b"\n") == start.count(end)


def _has_bare_carriage_returns(start: bytes) -> bool:
    return b"\n" not in start and b"\r" in start.rstrip(b"\r")


def _blocks(path: Path, meter: Meter | None) -> Iterator[bytes]:
    """Yields blocks of complete lines without the last ``\\n``; a line that is too long may be cut."""
    # One byte more than a valid line, to detect a line that is too long.
    most = len(BYTE_ORDER_MARK) + MAX_LINE_BYTES + len(b"\r") + 1
    rest, first = b"", True
    with open_bytes(path, meter) as file:
        while block := file.read(BLOCK_BYTES):
            if first and _is_utf_16(block):
                raise UserError(f"{path}: UTF-16 text, expected UTF-8; run iconv -f UTF-16 -t UTF-8 {path.name}")
            if first and _has_bare_carriage_returns(block):
                raise UserError(
                    f"{path}: lines end with carriage returns alone, expected line feeds; "
                    f"run tr '\\r' '\\n' < {path.name}"
                )
            first = False
            lines, newline, last = block.rpartition(b"\n")
            if newline:
                yield rest + lines
                rest = last
            elif len(rest) < most:
                rest = (rest + last)[:most]
    if rest:
        yield rest


def _lines(block: bytes) -> Iterable[tuple[str, str]]:
    lines = block.split(b"\n")
    special = b"\r" in block or b"\0" in block or BYTE_ORDER_MARK in block
    if not special and max(map(len, lines)) <= MAX_LINE_BYTES:
        try:
            return [(line, "") for line in map(bytes.decode, lines)]
        except UnicodeDecodeError:
            pass
    return map(_line, lines)


def _line(line: bytes) -> tuple[str, str]:
    line = line.removesuffix(b"\r").removeprefix(BYTE_ORDER_MARK)  # files joined by `cat` have marks between lines
    if len(line) > MAX_LINE_BYTES:
        return "", LONG_LINE
    if b"\0" in line:
        return "", NUL
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", NOT_UTF8


def decoded_lines(path: Path, meter: Meter | None = None) -> Iterator[tuple[str, str]]:
    """Yields ``(text, "")`` for each line, without its line end, or ``("", reason)``; ``meter`` counts the bytes read.

    Raises:
        UserError: the file is a truncated or broken archive, or UTF-16.
    """
    return chain.from_iterable(map(_lines, _blocks(path, meter)))


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields the number (from 1) and the stripped text of each line; no line may be invalid.

    Raises:
        UserError: a line is not UTF-8, has a NUL character or is too long, or the archive is broken.
    """
    for number, (text, reason) in enumerate(decoded_lines(Path(path)), 1):
        if reason:
            raise UserError(f"{path}:{number}: {reason}")
        yield number, text.strip()


def read_texts(path: Path) -> Iterator[str | Reject]:
    """Yields one item for each line that is not blank: the stripped text or a reject.

    Raises:
        UserError: the file is a truncated or broken archive, or UTF-16.
    """
    for number, (text, reason) in enumerate(decoded_lines(path), 1):
        if reason:
            yield Reject(path, number, reason)
        elif text := text.strip():
            yield text
