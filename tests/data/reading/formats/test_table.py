import pytest

from ppa_fast.data.reading.lines import MAX_LINE_BYTES
from ppa_fast.errors import UserError
from tests.data.reading.formats.conftest import Read


def test_tsv_of_two_columns_has_no_quoting(read: Read) -> None:
    assert read("t.tsv", 'a "b"\t"c\n"d\te"\n') == [('a "b"', '"c'), ('"d', 'e"')]


@pytest.mark.parametrize(("name", "tab"), [("t.tsv", "\t"), ("t.csv", ",")])
def test_columns_are_selected_by_name(read: Read, name: str, tab: str) -> None:
    rows = ["id,deu,note,eng,score", "1,eins,x,one,0.5", "2,zwei,,two,", "3,drei,x,three,nan", "4,vier,x,four", ""]
    text = "\n".join(rows).replace(",", tab)
    assert read(name, text, columns=("eng", "deu")) == [
        ("one", "eins"),
        ("two", "zwei"),
        ("three", "drei"),
        "reject: wrong number of columns",
    ]
    assert read(name, text, columns=("eng", "deu"), score_column="score")[:3] == [
        ("one", "eins", 0.5),
        ("two", "zwei"),
        "reject: score is not a number",
    ]


def test_the_default_columns_are_the_language_codes_as_given(read: Read) -> None:
    assert read("t.tsv", "score\tzh_Hant\ten\n0.5\t一\tone\n", "en-zh_Hant", score_column="score") == [
        ("one", "一", 0.5)
    ]


def test_columns_by_position_need_no_header(read: Read) -> None:
    assert read("t.tsv", "0.5\tone\teins\n1\ttwo\n", columns=("2", "3"), score_column="1") == [
        ("one", "eins", 0.5),
        "reject: wrong number of columns",
    ]


@pytest.mark.parametrize(
    ("content", "found"), [("src\ttgt\n", "found src, tgt"), ("", "no header"), (b"\xff\n", "not UTF-8")]
)
def test_a_header_without_the_columns_is_an_error(read: Read, content: str | bytes, found: str) -> None:
    with pytest.raises(UserError, match=rf"t\.tsv:1: expected columns en, de in the header, {found}; see --columns"):
        read("t.tsv", content, columns=("en", "de"))


def test_an_error_about_a_long_header_is_short(read: Read) -> None:
    with pytest.raises(UserError, match=r"found x+…; see --columns$"):
        read("t.tsv", "x" * MAX_LINE_BYTES, columns=("en", "de"))


def test_csv_quotes_are_parsed(read: Read) -> None:
    text = '"a, ""b""",c\r\n"two\nlines",d\n' + "no comma\n" + "e,f,g\n" + "plain,row\n"
    assert read("t.csv", text) == [
        ('a, "b"', "c"),
        ("two\nlines", "d"),
        "reject: missing comma",
        "reject: more than two columns; see --columns",
        ("plain", "row"),
    ]


def test_a_broken_quote_rejects_only_its_row(read: Read) -> None:
    bad = "reject: broken quotes"
    assert read("t.csv", '"open,x\ngood,gut\n"fine",fein\n') == [bad, ("good", "gut"), ("fine", "fein")]
    assert read("t.csv", '"open,x\ngood,gut') == [bad, ("good", "gut")]
    assert read("t.csv", '"said" he,x\ngood,gut\n') == [bad, ("good", "gut")]
    many = "".join(f"row {i},Zeile {i}\n" for i in range(20_000))  # more than the maximum length of a field
    assert read("t.csv", '"open,x\n' + many) == [bad, *((f"row {i}", f"Zeile {i}") for i in range(20_000))]
    assert read("t.csv", b'"open,x\n\xff,y\ngood,gut\n') == [bad, "reject: not UTF-8", ("good", "gut")]


def test_long_texts_are_read(read: Read) -> None:
    long = "x" * (MAX_LINE_BYTES // 2 + 1)
    assert read("t.csv", f'en,de\n"{long}\n{long}",b\nc,d\n', columns=("en", "de")) == [
        "reject: text over 64 KiB",
        ("c", "d"),
    ]


def test_a_first_row_of_language_codes_gives_a_warning(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    assert read("t.tsv", "en\tde\na\tb\n") == [("en", "de"), ("a", "b")]
    assert caplog.messages[-1].endswith("t.tsv:1: the row is en and de; if it is a header, give --columns")
    caplog.clear()
    assert read("t.tsv", "de\ten\na\tb\n")[1] == ("a", "b")
    assert not caplog.records
