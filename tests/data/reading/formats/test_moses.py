import gzip
from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import Pair, Reject, parse_pairs
from ppa_fast.data.reading.lines import MAX_LINE_BYTES
from ppa_fast.errors import UserError


def test_the_file_with_the_bad_side_is_named(tmp_path: Path) -> None:
    a, b = tmp_path / "t.en", tmp_path / "t.de"
    a.write_bytes(b"one\n\nthree\n\xff\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\nsix\n\n\0\n")
    b.write_bytes(b"eins\nzwei\n \nvier\nf\xc3\xbcnf\n\xff\n\nacht\n")
    assert list(parse_pairs(f"en-de:{a},{b}").read()) == [
        Pair("one", "eins", "one"),
        Reject(a, 2, "empty side"),
        Reject(b, 3, "empty side"),
        Reject(a, 4, "not UTF-8"),
        Reject(a, 5, "line over 64 KiB"),
        Reject(b, 6, "not UTF-8"),
        Reject(a, 7, "empty side"),
        Reject(a, 8, "NUL character"),
    ]


@pytest.mark.parametrize(("lines_a", "lines_b"), [(1234, 1233), (1233, 1234), (0, 1), (2000, 3)])
def test_unequal_lengths_name_both_files_and_counts(tmp_path: Path, lines_a: int, lines_b: int) -> None:
    a, b = tmp_path / "t.en", tmp_path / "t.de.gz"
    a.write_text("a\n" * lines_a)
    b.write_bytes(gzip.compress(b"\xff\n" * lines_b))
    items = parse_pairs(f"en-de:{a},{b}").read()
    for _ in range(min(lines_a, lines_b)):
        next(items)
    with pytest.raises(UserError) as error:
        next(items)
    assert f"en-de: files of unequal length: {a} has {lines_a:,} lines, {b} has {lines_b:,};" in str(error.value)
