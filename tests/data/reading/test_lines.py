import tracemalloc
from pathlib import Path

import pytest

from ppa_fast.data.reading import lines as module
from ppa_fast.data.reading.lines import BLOCK_BYTES, MAX_LINE_BYTES, count_lines, decoded_lines, read_texts, text_lines
from ppa_fast.errors import UserError

LONG = ("", "line over 64 KiB")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t"


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2), (b"a\r\nb\x85\x0b\x0c", 2)]
)
def test_count_lines_counts_newlines(path: Path, content: bytes, lines: int) -> None:
    path.write_bytes(content)
    assert count_lines(path) == len(list(decoded_lines(path))) == lines


def test_lines_end_at_newline_only(path: Path) -> None:
    path.write_text(
        "\ufeffone\u2028still one\r\ntwo\x85still two\n  three \u3000\nfo\rur\n\n\ufefffive\r\r\n6\r", newline=""
    )
    assert [text for text, _ in decoded_lines(path)] == [
        "one\u2028still one",
        "two\x85still two",
        "  three \u3000",
        "fo\rur",
        "",
        "five\r",  # `cat` leaves a byte order mark at the start of a line
        "6",
    ]
    assert list(text_lines(path))[2] == (3, "three")


@pytest.mark.parametrize(
    "content", [b"one\rtwo\rthree\r", b"one\rtwo", b"\xef\xbb\xbfone\rtwo\r" + b"x\r" * BLOCK_BYTES]
)
def test_bare_carriage_returns_are_an_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"t: lines end with carriage returns alone, expected line feeds; run tr '\\r' '\\n'"
    ):
        list(decoded_lines(path))


def test_a_line_can_contain_carriage_returns(path: Path) -> None:
    for content, expected in ((b"one\r", ["one"]), (b"one\rtwo\n", ["one\rtwo"]), (b"one\r\ntwo\r\n", ["one", "two"])):
        path.write_bytes(content)
        assert [text for text, _ in decoded_lines(path)] == expected


@pytest.mark.parametrize("over", range(-1, 9))
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_limit_is_exact(path: Path, start: bytes, over: int, end: bytes) -> None:
    line = b"z" * (MAX_LINE_BYTES + over)
    path.write_bytes(start + line + end + line + end + b"end" + end + line)
    expected = (line.decode(), "") if over <= 0 else LONG
    assert list(decoded_lines(path)) == [expected, expected, ("end", ""), expected]


def test_the_limit_counts_bytes(path: Path) -> None:
    path.write_text("ä" * (MAX_LINE_BYTES // 2) + "\n" + "ä" * (MAX_LINE_BYTES // 2) + "b\n")
    assert list(decoded_lines(path)) == [("ä" * (MAX_LINE_BYTES // 2), ""), LONG]


@pytest.mark.parametrize("block", [4, 5, 7, 64, 1000])
def test_block_boundaries_do_not_change_the_lines(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 12)
    rows = ["", "ä" * 6, "x" * 13, "a\0b", "", "一二三四", "y" * 500, "last"]
    expected = [
        ("", "line over 64 KiB") if len(row.encode()) > 12 else ("", "NUL character") if "\0" in row else (row, "")
        for row in rows
    ]
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n"):
            path.write_text(mark + end.join(rows), newline="")
            assert list(decoded_lines(path)) == expected


def test_a_bad_line_does_not_affect_other_lines_of_its_block(path: Path) -> None:
    rows = [f"row {i} ä".encode() for i in range(1_000)]
    rows[100], rows[101], rows[500], rows[998] = b"\xff", b"\xc3", b"a\0", b"z" * (MAX_LINE_BYTES + 1)
    path.write_bytes(b"\n".join(rows))
    found = list(decoded_lines(path))
    assert {i: reason for i, (_, reason) in enumerate(found) if reason} == {
        100: "not UTF-8",
        101: "not UTF-8",
        500: "NUL character",
        998: "line over 64 KiB",
    }
    assert [text for text, reason in found if not reason] == [
        f"row {i} ä" for i in range(1_000) if i not in (100, 101, 500, 998)
    ]


def test_a_huge_line_is_not_read_into_memory(path: Path) -> None:
    path.write_bytes(b"first\n" + b"w" * (40 << 20) + b"\nlast\n")
    tracemalloc.start()
    found = list(decoded_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [("first", ""), LONG, ("last", "")]
    assert peak < 8 * BLOCK_BYTES


def test_a_bad_line_of_strict_text_is_named(path: Path) -> None:
    path.write_bytes(b"a\n\n\xff\nb\n")
    with pytest.raises(UserError, match=f"{path}:3: not UTF-8"):
        list(text_lines(path))
    assert [str(text) for text in read_texts(path)] == ["a", f"{path}:3: not UTF-8", "b"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised(path: Path, encoding: str) -> None:
    path.write_bytes("\ufeff你好\n再见\n".encode(encoding))
    with pytest.raises(UserError, match="t: UTF-16 text, expected UTF-8; run iconv"):
        list(decoded_lines(path))


def test_a_damaged_first_line_is_a_bad_line(path: Path) -> None:
    path.write_bytes(b"\xff\xfeone\ntwo\n")
    assert list(decoded_lines(path)) == [("", "not UTF-8"), ("two", "")]
