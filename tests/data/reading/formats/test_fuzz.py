"""Every reader against thousands of damaged files: each returns items with reasons, or raises a clear error."""

import csv
import io
import json
import math
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppa_fast.data.reading.corpus import Drop, Item, Pair, PairSource, ReadOptions, Reject, parse_pairs
from ppa_fast.data.reading.lines import MAX_LINE_BYTES
from ppa_fast.errors import UserError
from tests.data.reading.test_compression import ARCHIVES

RECORDS = 30
TEXTS = [
    (
        f"{number} is a number, said “Zoë”.",
        f"{number} ist eine Zahl – \u2028 sagte 小明 \U0001f600 {'x' * (number % 7)}.",
    )
    for number in range(RECORDS)
]
SECONDS = 60  # per file: far more than the slowest file needs
MEMORY = 256 << 20


def tsv() -> bytes:
    return "".join(f"{a}\t{b}\n" for a, b in TEXTS).encode()


def table() -> bytes:
    return ("id\ten\tde\tscore\n" + "".join(f"{i}\t{a}\t{b}\t0.{i}\n" for i, (a, b) in enumerate(TEXTS))).encode()


def comma() -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(TEXTS)
    return text.getvalue().encode()


def jsonl() -> bytes:
    rows = [
        {"translation": {"en": a, "de": b}, "score": i} if i % 2 else {"de": b, "en": a}
        for i, (a, b) in enumerate(TEXTS)
    ]
    return "".join(json.dumps(row, ensure_ascii=i % 3 == 0) + "\n" for i, row in enumerate(rows)).encode()


def tmx() -> bytes:
    units = (
        f'<tu><prop type="score">0.5</prop><tuv xml:lang="en-US"><seg>{escape(a)}</seg></tuv>\n'
        f'<tuv xml:lang="de"><seg>{escape(b)}<ph>x</ph></seg></tuv></tu>\n'
        for a, b in TEXTS
    )
    return f'<?xml version="1.0"?>\n<tmx version="1.4"><body>\n{"".join(units)}</body></tmx>\n'.encode()


def xliff() -> bytes:
    units = (
        f"<trans-unit><source>{escape(a)}</source>\n<target><g>{escape(b)}</g></target></trans-unit>\n"
        for a, b in TEXTS
    )
    file = f'<file source-language="en" target-language="de"><body>{"".join(units)}</body></file>'
    return f'<xliff version="1.2">\n{file}</xliff>\n'.encode()


def po() -> bytes:
    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n"Language: de\\n"\n\n'
    return (header + "\n".join(f'#: x:{i}\nmsgid "{a}"\nmsgstr "{b}"\n' for i, (a, b) in enumerate(TEXTS))).encode()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"en": [a for a, _ in TEXTS], "de": [b for _, b in TEXTS]}),
        sink,
        row_group_size=RECORDS // 3,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


SCORED = ReadOptions(score_column="score")
FORMS: dict[str, tuple[str, Callable[[], bytes], ReadOptions]] = {
    "tsv": ("t.tsv", tsv, ReadOptions()),
    "tsv with a header": ("t.tsv", table, SCORED),
    "csv": ("t.csv", comma, ReadOptions()),
    "jsonl": ("t.jsonl", jsonl, SCORED),
    "tmx": ("t.tmx", tmx, SCORED),
    "xliff": ("t.xlf", xliff, ReadOptions()),
    "po": ("t.po", po, ReadOptions()),
    "parquet": ("t.parquet", parquet, ReadOptions()),
}
# Byte sequences that have broken readers, inserted anywhere.
POISON = [
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\t", b"\x0c", b"\x1a", b"\xc2\x85",
    b"\xe2\x80\xa8", b",", b'"', b"'", b"\\", b"<", b"&", b"]]>", b"&#0;", b"&#xd800;", b"&undefined;", b"<!--",
    b"<![CDATA[", b"<?xml?>",
    b'<!DOCTYPE x [<!ENTITY e "e">]>', rb"\ud800", rb'"\udfff"', b"null", b"NaN", b"-1e999", b"12345", b"{}", b"[]",
    b'{"en": 1, "de": 2}', b"[" * 3_000, b"<a>" * 3_000, b"9" * 6_000, b"x" * 70_000, b'"' + b"y" * 200_000,
    b'msgid ""\n', b'msgstr[7] "x"', b"msgctxt", b"#~ ", b"#, fuzzy\n", b"%PDF-1.4", b"PK\x03\x04", b"\x1f\x8b\x08",
    b"PAR1",
]  # fmt: skip


def accident(data: bytes, rng: random.Random) -> bytes:
    at, other = sorted(rng.choices(range(len(data) + 1), k=2))
    some = data[at : at + rng.randint(1, 40)]
    kinds = [
        lambda: data[:at] + rng.choice(POISON) + data[at:],
        lambda: data[:at] + rng.choice(POISON) + data[at + 1 :],
        lambda: data[:at] + rng.randbytes(rng.randint(1, 20)) + data[at:],
        lambda: bytes(byte ^ (rng.random() < 0.01) << rng.randrange(8) for byte in data),
        lambda: data[:at],
        lambda: data[at:],
        lambda: data[:at] + data[other:],
        lambda: data[:at] + some * rng.choice([2, 50]) + data[at:],
        lambda: data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b" "])),
        lambda: rng.choice([b"\xef\xbb\xbf" + data, data.decode("utf-8", "replace").encode("utf-16"), b""]),
        lambda: data.replace(some, rng.choice(POISON), 10) if some else data,
    ]
    return rng.choice(kinds)()[: 4 << 20]


def damaged(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = accident(data, rng)
    return data


@pytest.fixture(autouse=True)
def _bounds() -> Iterator[None]:
    """Interrupts a reader that hangs, and detects one that uses too much memory."""

    def interrupt(*_: object) -> None:
        raise AssertionError(f"a file took more than {SECONDS} s")

    before, memory = signal.signal(signal.SIGALRM, interrupt), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY


def check(source: PairSource) -> list[Item] | None:
    """Returns the items, each checked, or None for a file that is refused with an error that names it."""
    signal.alarm(SECONDS)
    try:
        items = list(source.read())
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert any(str(path) in refusal for path in source.paths)
        assert len(refusal) < 1_000
        return None
    for number, item in enumerate(items, 1):
        if isinstance(item, Pair):
            for text in (item.a, item.b):
                assert text == text.strip() != ""
                assert "\0" not in text
                assert len(text.encode("utf-8")) <= 2 * MAX_LINE_BYTES
            assert item.score is None or math.isfinite(item.score)
        else:
            assert item.path in source.paths
            assert item.reason
            assert number == (item.record if isinstance(item, Drop) else item.line)
    return items


def test_the_undamaged_files_are_read_completely(tmp_path: Path) -> None:
    for name, make, options in FORMS.values():
        extension, (pack, _) = (
            ("", (bytes, "")) if name == "t.parquet" else random.Random(name).choice([*ARCHIVES.items()])
        )
        path = tmp_path / (name + extension)
        path.write_bytes(pack(make()))
        items = check(parse_pairs(f"en-de:{path}", options))
        assert [item[:2] for item in items or [] if isinstance(item, Pair)] == [
            (a, b.replace("\u2028", " ") if name == "t.po" else b) for a, b in TEXTS
        ]


def fuzz(form: str, files: int, folder: Path) -> int:
    """Returns how many of the damaged files were read; the others were refused."""
    name, make, options = FORMS[form]
    whole, rng = make(), random.Random(f"{form} {files}")
    read = 0
    for _ in range(files):
        data, extension = damaged(whole, rng), ""
        if form != "parquet" and rng.random() < 0.2:
            extension, (pack, _) = rng.choice(list(ARCHIVES.items()))
            data = pack(data) if rng.random() < 0.2 else damaged(pack(whole), rng)
        path = folder / (name + extension)
        path.write_bytes(data)
        read += check(parse_pairs(f"en-de:{path}", options)) is not None
        path.unlink()
    return read


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_read_or_refused(form: str, tmp_path: Path, figure: Callable[..., None]) -> None:
    figure("damaged text files", 30)
    fuzz(form, 30, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_thousands_of_damaged_files_are_read_or_refused(form: str, tmp_path: Path, figure: Callable[..., None]) -> None:
    figure("damaged text files", 1_000)
    assert 0 < fuzz(form, 1_000, tmp_path) < 1_000  # the damage is neither always fatal nor ever harmless


@pytest.mark.parametrize("form", ["tsv", "tsv with a header", "csv", "jsonl"])
def test_a_damaged_line_does_not_affect_other_lines(form: str, tmp_path: Path, figure: Callable[..., None]) -> None:
    figure("damaged text files", 100)
    name, make, options = FORMS[form]
    lines, rng = make().split(b"\n"), random.Random(form)
    first = len(lines) - 1 - RECORDS  # after the header
    path = tmp_path / name
    for _ in range(100):
        at = rng.randrange(RECORDS)
        bad = list(lines)
        bad[first + at] = damaged(bad[first + at], rng).replace(b"\n", b" ")
        path.write_bytes(b"\n".join(bad))
        items = check(parse_pairs(f"en-de:{path}", options))
        assert items is not None
        assert len(items) == RECORDS
        assert [item[:2] if isinstance(item, Pair) else item for item in items[:at] + items[at + 1 :]] == [
            *TEXTS[:at],
            *TEXTS[at + 1 :],
        ]


def test_a_damaged_line_of_two_parallel_files_does_not_affect_other_lines(
    tmp_path: Path, figure: Callable[..., None]
) -> None:
    figure("damaged text files", 100)
    rng = random.Random(0)
    paths = [tmp_path / "t.en", tmp_path / "t.de"]
    for _ in range(100):
        at, side = rng.randrange(RECORDS), rng.randrange(2)
        sides = [[pair[i].encode() for pair in TEXTS] for i in range(2)]
        sides[side][at] = damaged(sides[side][at], rng).replace(b"\n", b" ")
        for path, lines in zip(paths, sides, strict=True):
            path.write_bytes(b"\n".join(lines))
        items = check(parse_pairs(f"en-de:{paths[0]},{paths[1]}"))
        assert items is not None
        assert len(items) == RECORDS
        assert [item[:2] for i, item in enumerate(items) if i != at] == [
            pair for i, pair in enumerate(TEXTS) if i != at
        ]
        assert not isinstance(items[at], Reject) or items[at].path == paths[side]


def test_a_damaged_entry_does_not_affect_other_entries(tmp_path: Path, figure: Callable[..., None]) -> None:
    figure("damaged text files", 100)
    rng, whole, path = random.Random(0), po().split(b"\n\n"), tmp_path / "t.po"
    texts = [(a, b.replace("\u2028", " ")) for a, b in TEXTS]
    for _ in range(100):
        at = rng.randrange(RECORDS)
        entries = list(whole)
        lines = entries[at + 1].split(b"\n")
        line = rng.randrange(len(lines))
        lines[line] = damaged(lines[line], rng).replace(b"\n", b" ")
        entries[at + 1] = b"\n".join(lines)
        path.write_bytes(b"\n\n".join(entries))
        items = check(parse_pairs(f"en-de:{path}"))
        assert items is not None
        assert len(items) >= RECORDS
        others = texts[:at] + texts[at + 1 :]
        assert [item[:2] for item in items if isinstance(item, Pair) and item[:2] in others] == others
