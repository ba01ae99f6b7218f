"""NLI files: the published formats, and every kind of invalid line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ppa_fast.errors import UserError
from ppa_fast.tasks.nli import NliExample, read_nli
from ppa_fast.tasks.reading import NO_GOLD_LABEL, rows_of

PARSES = [f"sentence{i}{kind}" for kind in ("_binary_parse", "_parse", "") for i in (1, 2)]
MULTINLI = ["gold_label", *PARSES, "promptID", "pairID", "genre", *(f"label{i}" for i in range(1, 6))]
XNLI = ["language", *MULTINLI, "sentence1_tokenized", "sentence2_tokenized", "match"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def row(header: list[str], **fields: str) -> str:
    return "\t".join(fields.get(name, "x") for name in header)


def test_nli_in_the_xnli_format(tmp_path: Path) -> None:
    first = {"language": "de", "gold_label": "neutral", "sentence1": 'Er sagte "ja', "sentence2": " Sie kam ."}
    second = {"language": "zh", "gold_label": "entailment", "sentence1": "他说", "sentence2": "她来"}
    path = write(tmp_path / "xnli.tsv", "\t".join(XNLI), row(XNLI, **first), row(XNLI, **second))
    german = NliExample('Er sagte "ja', "Sie kam .", "neutral", 0, "de")  # a quote is text, not a delimiter
    chinese = NliExample("他说", "她来", "entailment", 1, "zh")
    assert read_nli(path) == ([german, chinese], [])


def test_nli_in_the_multinli_format_can_lack_the_last_labels(tmp_path: Path) -> None:
    full = row(MULTINLI, gold_label="contradiction", sentence1="a", sentence2="b")
    none = row(MULTINLI, gold_label="-", sentence1="a", sentence2="b")
    short, shorter = full.split("\t")[:-4], full.split("\t")[:-6]
    path = write(
        tmp_path / "m.txt", "\t".join(MULTINLI), full, none, "\t".join(short), "\t".join(shorter), full + "\tx"
    )
    examples, rejected = read_nli(path)
    assert examples == [NliExample("a", "b", "contradiction", 0), NliExample("a", "b", "contradiction", 2)]
    assert list(map(str, rejected)) == [
        f"{path}:3: {NO_GOLD_LABEL}",
        f"{path}:5: found 9 columns, expected 15 as in the header",
        f"{path}:6: found 16 columns, expected 15 as in the header",
    ]


def test_nli_in_json_lines(tmp_path: Path) -> None:
    record = {"annotator_labels": ["neutral"], "gold_label": "neutral", "sentence1": "a", "sentence2": "b", "n": 1}
    lines = [json.dumps(record), "{", "[1]", json.dumps({**record, "sentence2": None}), json.dumps(record)]
    examples, rejected = read_nli(write(tmp_path / "m.jsonl", *lines))
    assert examples == [NliExample("a", "b", "neutral", 0), NliExample("a", "b", "neutral", 4)]
    assert [(r.line, r.reason) for r in rejected] == [(2, "not JSON"), (3, "not a JSON object"), (4, "no hypothesis")]


def test_nli_with_the_header_of_the_translations(tmp_path: Path) -> None:
    lines = [
        "\ufeffpremise\thypo\tlabel",
        "p\u2028q\th\tcontradictory",
        "\th\tneutral",
        "p\th\tmaybe",
        "",
        "p h\tneutral",
    ]
    text = "".join(line + "\r\n" for line in lines)
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress(text.encode() + b"p\t\xff\tneutral\np\th\tneutral"))
    examples, rejected = read_nli(path)
    # U+2028 does not end a line, and the last line needs no line end.
    assert examples == [NliExample("p\u2028q", "h", "contradiction", 0), NliExample("p", "h", "neutral", 6)]
    assert [(r.line, r.reason) for r in rejected] == [
        (3, "no premise"),
        (4, "label 'maybe', expected one of entailment, neutral, contradiction"),
        (5, "found 1 columns, expected 3 as in the header"),
        (6, "found 2 columns, expected 3 as in the header"),
        (7, "not UTF-8"),
    ]


def test_rows_with_an_unknown_language_are_rejected(tmp_path: Path) -> None:
    lines = ["premise\thypothesis\tlabel\tlanguage", "a\tb\tneutral\teng", "a\tb\tneutral\tEnglish", "a\tb\tneutral\t"]
    path = write(tmp_path / "t.tsv", *lines, "a\tb\tneutral\tde")
    examples, rejected = read_nli(path)
    assert [(r.line, r.reason) for r in rejected] == [
        (3, "language 'English', expected a BCP-47 code such as en"),
        (4, "language '', expected a BCP-47 code such as en"),
    ]
    assert rows_of(examples, "en") == [NliExample("a", "b", "neutral", 0, "eng")]
    plain = [NliExample("a", "b", "neutral", 0)]
    assert rows_of(plain, "de") == plain


def test_rows_with_other_labels_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "premise\thypothesis\tlabel", "a\tb\tyes", "a\tb\tneutral")
    examples, rejected = read_nli(path, labels=("yes", "no"))
    assert [e.label for e in examples] == ["yes"]
    assert [r.line for r in rejected] == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t.tsv:1: found no line, expected JSON lines or a header with the columns premise or sentence1"),
        ("premise\thypothesis\tlabel\n", "t.tsv: found no rows"),
        ("premise\tlabel\na\tb\n", r"found \['premise', 'label'\], .* columns hypothesis or hypo or sentence2"),
    ],
)
def test_an_invalid_nli_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_nli(path)


def test_numbers_as_labels(tmp_path: Path) -> None:
    """As XNLI, MultiNLI and SNLI on hubs; -1 is a pair without agreement."""
    lines = [json.dumps({"premise": "a", "hypothesis": "b", "label": label}) for label in (0, 1, 2, -1, 3, True, 1.5)]
    examples, rejected = read_nli(write(tmp_path / "n.jsonl", *lines))
    assert [example.label for example in examples] == ["entailment", "neutral", "contradiction"]
    assert [reject.reason.split(",")[0] for reject in rejected] == [NO_GOLD_LABEL, "label '3'", "no label", "no label"]
    table = write(tmp_path / "n.tsv", "premise\thypothesis\tlabel", "a\tb\t2", "a\tb\t-1")
    examples, rejected = read_nli(table)
    assert [example.label for example in examples] == ["contradiction"]
    assert [reject.reason for reject in rejected] == [NO_GOLD_LABEL]
