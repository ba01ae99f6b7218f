import gzip
import random
import tracemalloc
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from ppa_fast.data.corpus import Pair, PairSource, count_pairs, parse_pairs, read_eval_pairs, read_pairs, sentence_group
from ppa_fast.data.lines import MAX_LINE_BYTES, Reject, count_lines
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


def tsv(path: Path) -> PairSource:
    return PairSource("en", "de", path, None)


def pair(a: str, b: str) -> Pair:
    """A pair of two texts, the first of which is the pivot."""
    return Pair(a, b, a)


def test_parse_two_files_and_tsv(write: Write) -> None:
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
    assert (source.name, source.path_a, source.path_b, source.pivot) == ("en-fr", both, None, 0)
    assert parse_pairs(f"de-fr:{both}").pivot == 0


def test_a_language_keeps_the_users_spelling_and_is_known_by_any(write: Write) -> None:
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
def test_bad_syntax(write: Write, spec: str) -> None:
    spec = spec.format(path=write("t.tsv", "a\tb\n"))
    with pytest.raises(UserError, match=r"expected 'en-de:train\.en,train\.de'") as error:
        parse_pairs(spec)
    assert f"--pairs {spec}" in str(error.value)
    assert ("zh_Hant" in str(error.value)) == spec.startswith("zh-Hant")


@pytest.mark.parametrize(("spec", "code"), [("en-qq", "qq"), ("english-de", "english"), ("-de", "")])
def test_unknown_language_code(write: Write, spec: str, code: str) -> None:
    with pytest.raises(UserError, match=f"--pairs {spec}.*unknown language code '{code}'"):
        parse_pairs(f"{spec}:{write('t.tsv', '')}")


def test_unusable_files(write: Write, tmp_path: Path) -> None:
    here = write("t.en", "a\n")
    with pytest.raises(UserError, match=r"absent\.de: no such file"):
        parse_pairs(f"en-de:{here},{tmp_path}/absent.de")
    with pytest.raises(UserError, match="is not a regular file"):
        parse_pairs(f"en-de:{tmp_path},{here}")


def test_unreadable_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who can read everything
    with pytest.raises(UserError, match="permission denied"):
        parse_pairs(f"en-de:{write('t.tsv', '')}")


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2), (b"a\r\nb\x85\x0b\x0c", 2)]
)
@pytest.mark.parametrize("name", ["t", "t.gz"])
def test_count_lines(write: Write, name: str, content: bytes, lines: int) -> None:
    path = write(name, content)
    assert count_lines(path) == lines
    assert len(list(tsv(path).read())) == lines


def test_lines_end_at_newline_only(write: Write) -> None:
    a = write("t.en", "\ufeffone\u2028still one\r\ntwo\x85still two\n  three \u3000\nfo\rur")
    b = write("t.de", "eins\nzwei\ndrei\n\ufeffvier\n")
    assert list(PairSource("en", "de", a, b).read()) == [
        pair("one\u2028still one", "eins"),
        pair("two\x85still two", "zwei"),
        pair("three", "drei"),
        pair("fo\rur", "\ufeffvier"),  # a byte order mark is one at the start of a file only
    ]


def test_tsv_reasons(write: Write) -> None:
    long = b"x" * MAX_LINE_BYTES
    rows = [
        (b"a\tb", None),
        (b"no tab", "missing tab"),
        (b"", "missing tab"),
        (b"a\t", "empty side"),
        (b" \xc2\xa0\tb", "empty side"),
        (b"a\tb\tc", "more than two columns"),
        (b"caf\xe9\tb", "not UTF-8"),
        (b"a\t" + long, "line over 64 KiB"),
        (long[:-2] + b"\tb", None),
        (b"c\td\r", None),
    ]
    path = write("t.tsv", b"\n".join(row for row, _ in rows))
    found = list(tsv(path).read())
    expected = [Reject(path, line, reason) for line, (_, reason) in enumerate(rows, 1) if reason]
    assert [item for item in found if isinstance(item, Reject)] == expected
    assert str(expected[0]) == f"{path}:2: missing tab"
    accepted = [pair("a", "b"), pair("x" * (MAX_LINE_BYTES - 2), "b"), pair("c", "d")]
    assert [item for item in found if not isinstance(item, Reject)] == accepted

    calls: list[tuple[Path, int, str]] = []
    assert list(read_pairs(tsv(path), lambda *call: calls.append(call))) == accepted
    assert calls == [(item.path, item.line, item.reason) for item in expected]


def test_the_file_with_the_bad_side_is_named(write: Write) -> None:
    a = write("t.en", b"one\n\nthree\n\xff\n" + b"y" * (MAX_LINE_BYTES + 1) + b"\nsix\n\n")
    b = write("t.de", b"eins\nzwei\n \nvier\nf\xc3\xbcnf\n\xff\n\n")
    assert list(PairSource("en", "de", a, b).read()) == [
        pair("one", "eins"),
        Reject(a, 2, "empty side"),
        Reject(b, 3, "empty side"),
        Reject(a, 4, "not UTF-8"),
        Reject(a, 5, "line over 64 KiB"),
        Reject(b, 6, "not UTF-8"),
        Reject(a, 7, "empty side"),
    ]


@pytest.mark.parametrize("over", range(-1, 9))
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_limit_is_exact(write: Write, start: bytes, over: int, end: bytes) -> None:
    line = b"z" * (MAX_LINE_BYTES + over)
    a, b = write("t.en", start + line + end + line + end + b"end" + end), write("t.de", "1\n2\n3\n")
    texts = (line.decode(), line.decode()) if over <= 0 else (None, None)
    found = [None if isinstance(item, Reject) else item[0] for item in PairSource("en", "de", a, b).read()]
    assert found == [*texts, "end"]


@pytest.mark.parametrize("name", ["t.tsv", "t.tsv.gz"])
def test_a_huge_line_is_not_read_into_memory(write: Write, name: str) -> None:
    path = write(name, b"w" * (40 << 20) + b"\na\tb\n")
    tracemalloc.start()
    found = list(tsv(path).read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [Reject(path, 1, "line over 64 KiB"), pair("a", "b")]
    assert peak < 4 << 20


def test_unequal_lengths_name_both_files_and_counts(write: Write) -> None:
    a, b = write("t.en", "a\n" * 1234), write("t.de.gz", "b\n" * 1233)
    with pytest.raises(UserError) as error:
        count_pairs(parse_pairs(f"en-de:{a},{b}"))
    for part in ("en-de", f"{a} has 1,234 lines", f"{b} has 1,233"):
        assert part in str(error.value)


def test_broken_gzip(write: Write, tmp_path: Path) -> None:
    text = random.Random(0).randbytes(300_000).hex()
    whole = write("t.en.gz", text).read_bytes()
    broken = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "without its end": whole[:-3],
        "damaged": whole[:1000] + b"\0" * 100 + whole[1100:],
        "plain text": b"hello\n",
    }
    for content in broken.values():
        path = tmp_path / "broken.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.gz: broken gzip file"):
            count_lines(path)
        with pytest.raises(UserError, match=r"broken\.gz: broken gzip file"):
            list(tsv(path).read())


def test_read_eval_pairs(write: Write) -> None:
    a, b = write("d.en", "one\ntwo\n"), write("d.de.gz", "eins\nzwei\n")
    source, texts_a, texts_b = read_eval_pairs(f"en-de:{a},{b}")
    assert (source.name, texts_a, texts_b) == ("en-de", ["one", "two"], ["eins", "zwei"])
    bad = write("bad.tsv", "a\tb\nno tab\na\t\n")
    with pytest.raises(UserError, match=r"bad\.tsv:2: missing tab"):
        read_eval_pairs(f"en-de:{bad}")
    with pytest.raises(UserError, match="unequal length"):
        read_eval_pairs(f"en-de:{a},{write('d.de', 'eins')}")
    with pytest.raises(UserError, match="no lines"):
        read_eval_pairs(f"en-de:{write('empty.tsv', '')}")


def test_sentence_group() -> None:
    # Known answer: XXH3-64 of nothing is 2d06800538d394c2, from the reference implementation.
    assert sentence_group(" \n") == 0x2D06800538D394C2
    composed = "Caf\u00e9 \u00c5"
    assert sentence_group(composed) == sentence_group(f" {unicodedata.normalize('NFD', composed)}\u2009")
    assert len({sentence_group(text) for text in (composed, composed.lower(), "Cafe A", composed + ".")}) == 4
    groups = [sentence_group(str(number)) for number in range(200)]
    assert min(groups) < 0 < max(groups)
    assert all(-(1 << 63) <= group < 1 << 63 for group in groups)
