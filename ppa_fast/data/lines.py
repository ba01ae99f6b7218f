"""Lines of text files, plain or compressed, none of them taken for good before it is read.

Files are read as bytes and split at ``\\n`` only (``str.splitlines`` would also split at U+2028 or U+0085, inside a
sentence, and shift everything behind it). Blocks of good lines are decoded and split in one go; a line that is too long
is never held in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ppa_fast.data.compression import Meter, open_bytes
from ppa_fast.errors import UserError

MAX_LINE_BYTES = 64 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = {b"\xff\xfe": b"\n\0", b"\xfe\xff": b"\0\n"}  # its mark: its end of line
BLOCK_BYTES = 256 * 1024

NOT_UTF8 = "not UTF-8"
NUL = "NUL character"
LONG_LINE = "line over 64 KiB"


@dataclass(frozen=True)
class Reject:
    """A record that is no usable pair; ``str`` gives ``file:line: reason``.

    ``line`` is the record's number in its file, from 1: its line in files of lines without a header.
    """

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def count_lines(path: Path) -> int:
    """The number of lines of a file; a last line without ``\\n`` counts.

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
    """By the mark and the ends of all lines: the mark alone may be damage to a first line."""
    end = UTF_16.get(start[:2])
    return end is not None and 0 < start.count(b"\n") == start.count(end)


def _blocks(path: Path, meter: Meter | None) -> Iterator[bytes]:
    """The file in blocks of whole lines without the last ``\\n``; of a line that is too long, its beginning."""
    most = MAX_LINE_BYTES + len(b"\r") + 1  # one byte more than a good line has: enough to know that it is too long
    rest, mark = b"", BYTE_ORDER_MARK
    with open_bytes(path, meter) as file:
        while block := file.read(BLOCK_BYTES):
            if mark and _is_utf_16(block):
                raise UserError(f"{path}: UTF-16 text, expected UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > …")
            lines, newline, last = block.removeprefix(mark).rpartition(b"\n")
            mark = b""
            if newline:
                yield rest + lines
                rest = last
            elif len(rest) < most:
                rest = (rest + last)[:most]
    if rest:
        yield rest


def _lines(block: bytes) -> Iterable[tuple[str, str]]:
    lines = block.split(b"\n")
    if b"\r" not in block and b"\0" not in block and max(map(len, lines)) <= MAX_LINE_BYTES:
        try:
            return [(line, "") for line in map(bytes.decode, lines)]
        except UnicodeDecodeError:
            pass
    return map(_line, lines)


def _line(line: bytes) -> tuple[str, str]:
    line = line.removesuffix(b"\r")
    if len(line) > MAX_LINE_BYTES:
        return "", LONG_LINE
    if b"\0" in line:
        return "", NUL
    try:
        return line.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", NOT_UTF8


def decoded_lines(path: Path, meter: Meter | None = None) -> Iterator[tuple[str, str]]:
    """``(text, "")`` of each line, without its end, or ``("", reason)``; ``meter`` counts the bytes read.

    Raises:
        UserError: the file is a truncated or broken archive, or UTF-16.
    """
    return chain.from_iterable(map(_lines, _blocks(path, meter)))


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in which none may be bad, numbered from 1, without surrounding white space.

    Raises:
        UserError: a line that is not UTF-8, has a NUL character or is too long, or a broken archive.
    """
    for number, (text, reason) in enumerate(decoded_lines(Path(path)), 1):
        if reason:
            raise UserError(f"{path}:{number}: {reason}")
        yield number, text.strip()


def read_texts(path: Path) -> Iterator[str | Reject]:
    """One item for each line of plain text that is not blank: the text, stripped, or why there is none.

    Raises:
        UserError: the file is a truncated or broken archive, or UTF-16.
    """
    for number, (text, reason) in enumerate(decoded_lines(path), 1):
        if reason:
            yield Reject(path, number, reason)
        elif text := text.strip():
            yield text
