"""Readers of task data: the published forms, and every line that is none."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.data.examples import (
    NO_GOLD_LABEL,
    NliExample,
    QaExample,
    TextExample,
    format_rejected,
    load_json,
    output_file,
    parse_files,
    read_classification,
    read_gold,
    read_nli,
    read_qa,
    rows_of,
)
from ppa_fast.errors import UserError

PARSES = [f"sentence{i}{kind}" for kind in ("_binary_parse", "_parse", "") for i in (1, 2)]
MULTINLI = ["gold_label", *PARSES, "promptID", "pairID", "genre", *(f"label{i}" for i in range(1, 6))]
XNLI = ["language", *MULTINLI, "sentence1_tokenized", "sentence2_tokenized", "match"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def row(header: list[str], **fields: str) -> str:
    return "\t".join(fields.get(name, "x") for name in header)


def test_nli_in_the_xnli_form(tmp_path: Path) -> None:
    first = {"language": "de", "gold_label": "neutral", "sentence1": 'Er sagte "ja', "sentence2": " Sie kam ."}
    second = {"language": "zh", "gold_label": "entailment", "sentence1": "他说", "sentence2": "她来"}
    path = write(tmp_path / "xnli.tsv", "\t".join(XNLI), row(XNLI, **first), row(XNLI, **second))
    german = NliExample('Er sagte "ja', "Sie kam .", "neutral", 0, "de")  # a quote is text, never a delimiter
    chinese = NliExample("他说", "她来", "entailment", 1, "zh")
    assert read_nli(path) == ([german, chinese], [])


def test_nli_in_the_multinli_form_whose_last_labels_may_be_missing(tmp_path: Path) -> None:
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
        f"{path}:5: columns: 9, the header has 15",
        f"{path}:6: columns: 16, the header has 15",
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
    # U+2028 inside a sentence ends no line, and the last line needs no end.
    assert examples == [NliExample("p\u2028q", "h", "contradiction", 0), NliExample("p", "h", "neutral", 6)]
    assert [(r.line, r.reason) for r in rejected] == [
        (3, "no premise"),
        (4, "label 'maybe', expected one of entailment, neutral, contradiction"),
        (5, "columns: 1, the header has 3"),
        (6, "columns: 2, the header has 3"),
        (7, "not UTF-8"),
    ]


def test_nli_in_a_language_that_is_none(tmp_path: Path) -> None:
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


def test_nli_with_two_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "premise\thypothesis\tlabel", "a\tb\tyes", "a\tb\tneutral")
    examples, rejected = read_nli(path, labels=("yes", "no"))
    assert [e.label for e in examples] == ["yes"]
    assert [r.line for r in rejected] == [3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t.tsv:1: expected JSON lines or a header with the columns premise or sentence1, .*found no line"),
        ("premise\thypothesis\tlabel\n", "t.tsv: no rows"),
        ("premise\tlabel\na\tb\n", r"columns hypothesis or hypo or sentence2; found \['premise', 'label'\]"),
    ],
)
def test_a_file_that_is_no_nli(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_nli(path)


def test_classification(tmp_path: Path) -> None:
    lines = ["index_id\tcategory\ttext", "7\tsports\tA goal .", "8\t\tNo label", "9\ttravel\t ", "10\ttravel\ta\tb"]
    path = write(tmp_path / "t.tsv", *lines, "11\ttravel\tA trip")
    examples, rejected = read_classification(path)
    assert examples == [TextExample("A goal .", "sports", 0, "7"), TextExample("A trip", "travel", 4, "11")]
    assert [(r.line, r.reason) for r in rejected] == [
        (3, "no label"),
        (4, "no text"),
        (5, "columns: 4, the header has 3"),
    ]
    examples, rejected = read_classification(path, labels=["travel"])
    assert [e.row for e in examples] == [4]
    assert str(rejected[0]) == f"{path}:2: label 'sports', expected one of travel"
    plain = write(tmp_path / "p.tsv", "text\tlabel", "a b\tx")
    assert read_classification(plain) == ([TextExample("a b", "x", 0)], [])


def squad(path: Path, *questions: dict[str, Any], context: str = "Er war 12 Jahre in Köln.") -> Path:
    data = [{"title": "K", "paragraphs": [{"context": context, "qas": list(questions)}]}]
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


def asked(id_: str, *answers: tuple[str, int], **fields: Any) -> dict[str, Any]:
    return {"id": id_, "question": "Wo?", "answers": [{"text": t, "answer_start": s} for t, s in answers], **fields}


def test_qa(tmp_path: Path) -> None:
    path = squad(tmp_path / "q.json", asked("a", ("Köln", 19), ("in Köln", 16)))
    context = "Er war 12 Jahre in Köln."
    assert read_qa(path) == ([QaExample("a", "Wo?", context, (("Köln", 19), ("in Köln", 16)), "K")], [])


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (asked("b", ("Köln", 18)), "answer 'Köln' is not at character 18 of its context, which has ' Köl' there"),
        (asked("b", ("Köln", 19), ("Bonn", 19)), "answer 'Bonn' is not at character 19"),
        (asked("b", (".", -1)), "answer '.' is not at character -1"),
        (asked("b", ("", 3)), "answer '' is not at character 3"),
        (asked("b", ("12", 99)), "which has '' there"),
        ({"id": "b", "question": "Wo?", "answers": [{"text": "Köln"}]}, "answer 'Köln' is not at character -1"),
        (asked("b", ("Köln", 19), question=" "), "no question"),
        (asked("b"), "no answer"),
        (asked("a", ("Köln", 19)), "an earlier question has this id"),
    ],
)
def test_a_question_that_cannot_be_used(tmp_path: Path, question: dict[str, Any], reason: str) -> None:
    path = squad(tmp_path / "q.json", asked("a", ("Köln", 19)), question, asked("c", ("12", 7)))
    examples, rejected = read_qa(path)
    assert [e.id for e in examples] == ["a", "c"]
    (reject,) = rejected
    assert str(reject).startswith(f"{path}: question {question['id']}: ")
    assert reason in reject.reason


def test_gold_answers_need_no_offsets(tmp_path: Path) -> None:
    data = [{"paragraphs": [{"qas": [{"id": "a", "answers": [{"text": "x"}, {"text": ""}]}]}]}]
    path = write(tmp_path / "g.json", json.dumps({"data": data}))
    assert read_gold(path) == ([QaExample("a", "", "", (("x", -1), ("", -1)), "")], [])
    for _, rejected in (read_gold(path, asked=True), read_qa(path)):
        assert [r.reason for r in rejected] == ["no question"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "q.json:1: not JSON"),
        ('{\n"data": [,]}', "q.json:2: not JSON"),
        ("[]", "the file: expected 'data', a list, as in SQuAD 1.1; found 'None'"),
        ('{"data": []}', "no rows"),
        ('{"data": [{}]}', r"data\[0\]: expected 'paragraphs'"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": 3}]}]}]}',
            r"data\[0\].paragraphs\[0\].qas\[0\]: expected 'id', a text",
        ),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "u", "answers": "x"}]}]}]}', "u: expected 'answers', a list"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "u", "answers": [{}]}]}]}]}', "u: expected 'text', a text"),
    ],
)
def test_a_file_that_is_no_squad(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_qa(path)


def test_json_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(UserError, match=r"q\.json: not UTF-8"):
        load_json(tmp_path / "q.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert load_json(tmp_path / "b.json") == [1]


def test_rejected_rows_are_listed_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "text\tlabel", *["x"] * 30)
    lines = format_rejected(read_classification(path)[1]).splitlines()
    assert len(lines) == 21
    assert lines[0] == f"{path}:2: columns: 1, the header has 2"
    assert lines[-1] == "… and 10 more, 30 rejected in all"
    assert format_rejected([]) == ""


def test_files_by_language(tmp_path: Path) -> None:
    en, zh = write(tmp_path / "en", "x"), write(tmp_path / "zh", "x")
    assert parse_files([f"en:{en}", f"zh_Hant:{zh}"], "--train") == {"en": en, "zh_Hant": zh}
    for specs, message in (
        ([str(en)], "expected LANG:FILE"),
        (["en:"], "expected LANG:FILE"),
        ([f"qqqqq:{en}"], "expected LANG:FILE"),
        (["en:absent"], "absent: no such file"),
        ([f"en:{en}", f"eng:{zh}"], "eng is given twice"),
    ):
        with pytest.raises(UserError, match=f"^--train .*{message}"):
            parse_files(specs, "--train")


def test_a_file_for_output_is_never_a_device_and_links_are_followed(tmp_path: Path) -> None:
    """As root, replacing /dev/stdout by a file would break the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent" / "file", tmp_path / "pipe", tmp_path / "device"):
        with pytest.raises(UserError, match=f"--json {path}: expected a regular file in a folder that exists"):
            output_file(path, "--json")
    (tmp_path / "link").symlink_to(tmp_path / "scores.json")
    for name in ("link", "scores.json"):
        assert output_file(tmp_path / name, "--json") == tmp_path.resolve() / "scores.json"


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_real_files_are_read_whole() -> None:
    data = Path(os.environ["PPA_FAST_TEST_DATA"])
    labels = []
    for path in sorted(data.glob("nli/*.tsv")):
        examples, rejected = read_nli(path)
        assert (len(examples), rejected) == (12000, [])
        labels.append(Counter(e.label for e in examples))
    assert len(labels) == 10
    assert all(count == {"contradiction": 4442, "entailment": 4093, "neutral": 3465} for count in labels)

    topics = {}
    for path in sorted(data.glob("topic/*/*.tsv")):
        texts, rejected = read_classification(path)
        assert (len(texts), rejected) == ({"train": 701, "dev": 99, "test": 204}[path.stem], [])
        rows = [(e.row, e.index, e.label) for e in texts]
        assert topics.setdefault(path.stem, rows) == rows
    assert sorted(topics) == ["dev", "test", "train"]

    for path in sorted(data.glob("qa/*.json")):
        questions, bad = read_qa(path)
        assert (len(questions), bad) == (1190, [])
