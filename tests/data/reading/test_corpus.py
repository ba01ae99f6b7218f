import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import (
    Pair,
    ReadOptions,
    Reject,
    parse_pairs,
    read_eval_pairs,
    read_pairs,
)
from ppa_fast.data.reading.formats import EXTENSIONS
from ppa_fast.data.reading.lines import MAX_LINE_BYTES
from ppa_fast.errors import UserError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: bytes | str) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def pair(a: str, b: str) -> Pair:
    """A pair of two texts; the first is the pivot."""
    return Pair(a, b, a)


def test_two_files_and_a_tsv_file_are_parsed(write: Write) -> None:
    en, zh, both = write("t.en", "a\n"), write("t.zh", "b\n"), write("t.tsv.gz", "a\tb\n")
    source = parse_pairs(f"zh_Hant-en:{zh},{en}")
    assert (source.a, source.b, source.name, source.paths, source.pivot) == (
        "zh_Hant",
        "en",
        "zh_Hant-en",
        [zh, en],
        1,
    )
    source = parse_pairs(f"en-fr:{both}")
    assert (source.name, source.paths, source.pivot) == ("en-fr", [both], 0)
    assert parse_pairs(f"de-fr:{both}").pivot == 0


def test_a_language_code_keeps_its_spelling_and_matches_any_spelling(write: Write) -> None:
    path = write("t.tsv", "a\tb\n")
    for name in ("eng-deu", "en-zh_Hant", "tl-en", "swh-eng"):
        assert parse_pairs(f"{name}:{path}").name == name
    assert [parse_pairs(f"{name}:{path}").pivot for name in ("deu-eng", "eng-deu", "de-fr", "de-en")] == [1, 0, 0, 1]
    with pytest.raises(UserError, match="both sides are en"):
        parse_pairs(f"eng-en:{path}")


@pytest.mark.parametrize(
    "spec",
    ["", "en-de", "en:{path}", "en-de:", "en-de:{path},", "en-de:{path},{path},{path}", "zh-Hant-en:{path}"],
)
def test_invalid_syntax_is_an_error(write: Write, spec: str) -> None:
    spec = spec.format(path=write("t.tsv", "a\tb\n"))
    with pytest.raises(UserError, match=r"expected 'en-de:train\.en,train\.de'") as error:
        parse_pairs(spec)
    assert f"pairs {spec}: " in str(error.value)
    assert ("zh_Hant" in str(error.value)) == spec.startswith("zh-Hant")


@pytest.mark.parametrize(("spec", "code"), [("en-qq", "qq"), ("english-de", "english"), ("-de", "")])
def test_an_unknown_language_code_is_an_error(write: Write, spec: str, code: str) -> None:
    with pytest.raises(UserError, match=f"^pairs {spec}.*unknown language code '{code}'"):
        parse_pairs(f"{spec}:{write('t.tsv', '')}")


def test_unusable_files_are_an_error(write: Write, tmp_path: Path) -> None:
    here = write("t.en", "a\n")
    with pytest.raises(UserError, match=r"absent\.de: no such file"):
        parse_pairs(f"en-de:{here},{tmp_path}/absent.de")
    with pytest.raises(
        UserError, match=f"{tmp_path} is a folder, not a regular file; to read a data set, give hf:{tmp_path}"
    ):
        parse_pairs(f"en-de:{tmp_path},{here}")
    os.mkfifo(tmp_path / "fifo.en")
    with pytest.raises(UserError, match=r"fifo\.en is not a regular file"):
        parse_pairs(f"en-de:{tmp_path}/fifo.en,{here}")


def test_an_unreadable_file_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, which can read every file
    with pytest.raises(UserError, match="permission denied"):
        parse_pairs(f"en-de:{write('t.tsv', '')}")


def test_the_extension_chooses_the_reader(write: Write) -> None:
    for extension in EXTENSIONS:
        for packed in ("", ".gz", ".bz2", ".xz", ".ZST"):
            reader = parse_pairs(f"en-de:{write(f't{extension.upper()}{packed}', '')}").reader
            assert reader.__module__.split(".")[-1] in (EXTENSIONS[extension], "table", "json_lines")
    path = write("t.export", '{"en": "a", "de": "b"}')
    with pytest.raises(
        UserError, match=r"the extension of .*t\.export is none of \.tsv .* or --format \(tsv, csv, jsonl"
    ):
        parse_pairs(f"en-de:{path}")
    assert list(parse_pairs(f"en-de:{path}", ReadOptions(format="jsonl")).read()) == [pair("a", "b")]
    with pytest.raises(UserError, match="--format yaml: expected one of tsv, csv, jsonl, tmx, xliff, po, parquet"):
        parse_pairs(f"en-de:{path}", ReadOptions(format="yaml"))


def test_names_of_opus_files_are_recognised(write: Write) -> None:
    en, de = write("Books.de-en.en", "a\n"), write("Books.de-en.de.gz", "b\n")
    prefix = en.with_suffix("")
    assert parse_pairs(f"en-de:{prefix}").paths == [en, de]
    assert parse_pairs(f"de-en:{prefix}").paths == [de, en]
    with pytest.raises(UserError, match=r"Books\.de-en: no such file"):
        parse_pairs(f"en-fr:{prefix}")


@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz"])
def test_the_position_counts_compressed_bytes(write: Write, name: str) -> None:
    path = write(name, "".join(f"{hash(str(i))}\t{i}\n" for i in range(100_000)))
    source = parse_pairs(f"en-de:{path}")
    positions = [source.bytes_read for _ in source.read()]
    assert 0 < positions[0] < source.bytes_total // 2
    assert positions == sorted(positions)
    assert positions[-1] == source.bytes_total == path.stat().st_size
    next(source.read())
    assert source.bytes_read < source.bytes_total // 2  # from the start


def test_bad_tsv_lines_are_rejected_with_a_reason(write: Write) -> None:
    long = b"x" * MAX_LINE_BYTES
    rows = [
        (b"a\tb", None),
        (b"no tab", "missing tab"),
        (b"", "missing tab"),
        (b"a\t", "empty side"),
        (b" \xc2\xa0\tb", "empty side"),
        (b"a\tb\tc", "more than two columns; see --columns"),
        (b"caf\xe9\tb", "not UTF-8"),
        ("a\tb".encode("utf-16-le"), "NUL character"),
        (b"a\t" + long, "line over 64 KiB"),
        (long[:-2] + b"\tb", None),
        (b"c\td\r", None),
    ]
    path = write("t.tsv", b"\n".join(row for row, _ in rows))
    source = parse_pairs(f"en-de:{path}")
    found = list(source.read())
    expected = [Reject(path, line, reason) for line, (_, reason) in enumerate(rows, 1) if reason]
    assert [item for item in found if isinstance(item, Reject)] == expected
    assert str(expected[0]) == f"{path}:2: missing tab"
    accepted = [pair("a", "b"), pair("x" * (MAX_LINE_BYTES - 2), "b"), pair("c", "d")]
    assert [item for item in found if not isinstance(item, Reject)] == accepted

    calls: list[tuple[Path, int, str]] = []
    assert list(read_pairs(source, lambda *call: calls.append(call))) == accepted
    assert calls == [(item.path, item.line, item.reason) for item in expected]


def test_evaluation_pairs_are_read(write: Write) -> None:
    a, b = write("d.en", "one\ntwo\n"), write("d.de.gz", "eins\nzwei\n")
    source, texts_a, texts_b = read_eval_pairs(f"en-de:{a},{b}")
    assert (source.name, texts_a, texts_b) == ("en-de", ["one", "two"], ["eins", "zwei"])
    bad = write("bad.tsv", "a\tb\nno tab\na\t\n")
    with pytest.raises(UserError, match=r"bad\.tsv:2: missing tab"):
        read_eval_pairs(f"en-de:{bad}")
    with pytest.raises(UserError, match="unequal length"):
        read_eval_pairs(f"en-de:{a},{write('d.de', 'eins')}")
    po = write("d.po", 'msgid "one"\nmsgstr "eins"\n\nmsgid "two"\nmsgstr ""\n')
    assert read_eval_pairs(f"en-de:{po}")[1:] == (["one"], ["eins"])  # an untranslated line is not a bad line
    with pytest.raises(UserError, match="found no pairs, expected at least one"):
        read_eval_pairs(f"en-de:{write('empty.tsv', '')}")


def test_paths_with_commas(tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    for name in ("t.en", "t.de", "one,two.tsv"):
        (folder / name).write_text("x\ty\n")
    assert parse_pairs(f"en-de:{folder}/t.en,{folder}/t.de").paths == [folder / "t.en", folder / "t.de"]
    assert parse_pairs(f"en-de:{folder}/one,two.tsv").paths == [folder / "one,two.tsv"]
    assert parse_pairs(f"en-de:{folder}/t").paths == [folder / "t.en", folder / "t.de"]
    with pytest.raises(UserError, match=r"t\.fr: no such file|expected 'en-de:"):
        parse_pairs(f"en-de:{folder}/t.en,{folder}/t.fr")
