"""Opens files as bytes and decompresses them by extension: ``.gz``, ``.bz2``, ``.xz``, ``.zst``.

Archives may have several members, as ``cat a.gz b.gz`` produces. Trailing data after the last member is an error:
Python's bz2 and xz files ignore it, so a damaged second member would be lost silently.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from ppa_fast.errors import UserError

# xz -9 needs 65 MiB. A file of a few bytes can request 4 GiB.
XZ_MEMORY = 256 << 20


class Meter:
    """Counts the bytes read from disk, before decompression."""

    bytes = 0


class _MeteredFile(io.FileIO):
    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(path, "rb")
        self._meter = meter

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._meter.bytes += count
        return count


class _XzMembers(io.RawIOBase):
    """Decompresses all members of an xz file."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._member = lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._member.eof:
                # Members may be padded with NUL bytes.
                start = (self._member.unused_data or self._packed.read(io.DEFAULT_BUFFER_SIZE)).lstrip(b"\0")
                if not start:
                    return 0
                self._member = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            else:
                start = self._packed.read(io.DEFAULT_BUFFER_SIZE) if self._member.needs_input else b""
                if self._member.needs_input and not start:
                    raise EOFError("the file ends inside a member")
            data = self._member.decompress(start, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Archive(NamedTuple):
    name: str
    unpacked: Callable[[BinaryIO], Any]  # a binary file or an Arrow stream, which has the same read()


ARCHIVES = {
    ".gz": _Archive("gzip", lambda packed: gzip.GzipFile(fileobj=packed, mode="rb")),
    ".bz2": _Archive("bzip2", lambda packed: pa.CompressedInputStream(packed, "bz2")),
    ".xz": _Archive("xz", lambda packed: io.BufferedReader(_XzMembers(packed))),
    ".zst": _Archive("Zstandard", lambda packed: pa.CompressedInputStream(packed, "zstd")),
}
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException, MemoryError)


def unpacked_name(path: Path) -> Path:
    """Returns the path without its archive extension: ``t.tsv`` for ``t.tsv.gz``."""
    return path.with_suffix("") if path.suffix.lower() in ARCHIVES else path


@contextmanager
def open_bytes(path: Path, meter: Meter | None = None) -> Iterator[BinaryIO]:
    """Opens a file and decompresses it by its extension; ``meter`` counts the bytes read from disk.

    Raises:
        UserError: the archive is truncated or damaged, or data follows its end.
    """
    with io.BufferedReader(_MeteredFile(path, meter or Meter())) as file:
        archive = ARCHIVES.get(path.suffix.lower())
        if archive is None:
            yield file
            return
        if path.stat().st_size == 0:  # some decompressors accept it as empty text; a failed download leaves such a file
            raise UserError(f"{path}: broken {archive.name} file: the file is empty")
        try:
            with archive.unpacked(file) as unpacked:
                yield unpacked
        except BROKEN as error:
            raise UserError(f"{path}: broken {archive.name} file: {error}") from error
