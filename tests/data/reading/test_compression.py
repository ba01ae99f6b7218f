import bz2
import gzip
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ppa_fast.data.reading.compression import Meter, open_bytes, unpacked_name
from ppa_fast.data.reading.lines import count_lines, decoded_lines
from ppa_fast.errors import UserError

Pack = Callable[[bytes], bytes]


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


ARCHIVES = {
    ".gz": (gzip.compress, "gzip"),
    ".bz2": (bz2.compress, "bzip2"),
    ".xz": (lzma.compress, "xz"),
    ".zst": (zstandard, "Zstandard"),
}
TEXT = random.Random(0).randbytes(100_000).hex().encode() + b"\nthe end"


@pytest.fixture(params=ARCHIVES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Pack, str]:
    """Returns a path, the function that compresses, and the name of the compression."""
    return tmp_path / f"t.en{request.param}", *ARCHIVES[request.param]


def text_of(path: Path) -> bytes:
    blocks = []
    with open_bytes(path) as file:
        while block := file.read(100_000):
            blocks.append(block)
    return b"".join(blocks)


def test_files_of_one_or_several_members_are_read(archive: tuple[Path, Pack, str]) -> None:
    path, pack, _ = archive
    path.write_bytes(pack(TEXT))
    assert text_of(path) == TEXT
    path.write_bytes(b"".join(pack(TEXT[i : i + 50_000]) for i in range(0, len(TEXT), 50_000)) + pack(b""))
    assert text_of(path) == TEXT
    path.write_bytes(pack(b""))
    assert (text_of(path), count_lines(path)) == (b"", 0)


def test_padded_xz_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.xz"
    path.write_bytes(lzma.compress(b"one ") + b"\0" * 8 + lzma.compress(b"two") + b"\0" * 4)
    assert text_of(path) == b"one two"


def test_a_broken_archive_is_an_error(archive: tuple[Path, Pack, str]) -> None:
    path, pack, name = archive
    whole, half = pack(TEXT), pack(TEXT[:50_000])
    broken = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "without its end": whole[:-3],
        "the second without its end": half + half[:-3],
        "a second that only begins": half + half[:2],
        "damaged": whole[:20_000] + b"\0" * 100 + whole[20_100:],
        "damaged second": half + b"XX" + half[2:],
        "something behind it": whole + b"something",
        "plain text": b"hello\n",
    }
    if name == "Zstandard":  # checksums are optional, and Arrow writes none
        del broken["damaged"]
    for content in broken.values():
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{path.name}: broken {name} file: ."):
            text_of(path)
        with pytest.raises(UserError, match=rf"{path.name}: broken {name} file: ."):
            list(decoded_lines(path))


def test_an_xz_file_that_needs_gigabytes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    path.write_bytes(lzma.compress(b"small", filters=filters))
    with pytest.raises(UserError, match="broken xz file: Memory usage limit"):
        text_of(path)


def test_the_meter_counts_compressed_bytes(archive: tuple[Path, Pack, str]) -> None:
    path, pack, _ = archive
    path.write_bytes(pack(TEXT))
    meter = Meter()
    lines = decoded_lines(path, meter)
    assert meter.bytes == 0
    assert [reason for _, reason in lines] == ["line over 64 KiB", ""]
    assert meter.bytes == path.stat().st_size


def test_the_extension_of_the_compression_is_removed() -> None:
    for packed, name in {"a/t.tsv.gz": "a/t.tsv", "t.tsv": "t.tsv", "t.en.ZST": "t.en", "xz": "xz"}.items():
        assert unpacked_name(Path(packed)) == Path(name)
