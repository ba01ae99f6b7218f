"""Joining translations of a data set by row and by question id, and the rows that are dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppa_fast.errors import UserError
from ppa_fast.tasks.classification import TextClassificationTask
from ppa_fast.tasks.nli import NliTask
from ppa_fast.tasks.parallel import read_parallel
from ppa_fast.tasks.question_answering import QuestionAnsweringTask


def nli(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["premise\thypo\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


def qa(path: Path, questions: list[tuple[str, str, str, int]]) -> Path:
    """A SQuAD file of (id, context, answer, start), one paragraph each."""
    paragraphs = [
        {"context": context, "qas": [{"id": id_, "question": "?", "answers": [{"text": text, "answer_start": start}]}]}
        for id_, context, text, start in questions
    ]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def test_rows_are_dropped_in_all_languages_together(tmp_path: Path) -> None:
    files = {
        "en": nli(tmp_path / "en", [f"p{i}\th{i}\tneutral" for i in range(5)]),
        "de": nli(
            tmp_path / "de", ["P0\tH0\tneutral", "\tH1\tneutral", "P2\tH2\tentailment", "P3\tH3\tneutral", "P4\tH4\t-"]
        ),
    }
    data = read_parallel(files, NliTask.read, max_rejected=0.6)
    assert data.rows == [0, 3]
    assert [example.premise for example in data.examples["en"]] == ["p0", "p3"]
    assert [example.premise for example in data.examples["de"]] == ["P0", "P3"]
    assert sorted(map(str, data.rejected)) == [
        f"{files['de']}:3: no premise",
        f"{files['de']}:4: label 'entailment', expected 'neutral' as in {files['en']}",
        f"{files['de']}:6: no gold label (-)",
    ]


def test_a_mismatch_in_json_lines_is_named_by_its_line(tmp_path: Path) -> None:
    for code, labels in {"en": ["neutral", "neutral"], "de": ["neutral", "entailment"]}.items():
        lines = [json.dumps({"sentence1": "p", "sentence2": "h", "gold_label": label}) for label in labels]
        (tmp_path / code).write_text("\n".join(lines), encoding="utf-8")
    data = read_parallel({code: tmp_path / code for code in ("en", "de")}, NliTask.read, max_rejected=0.5)
    assert [str(reject).split(": ")[0] for reject in data.rejected] == [f"{tmp_path / 'de'}:2"]


def test_too_many_rejected_rows_are_an_error_that_lists_them(tmp_path: Path) -> None:
    files = {
        "en": nli(tmp_path / "en", ["p\th\tneutral"] * 4),
        "de": nli(tmp_path / "de", ["p\th\tneutral"] * 3 + ["p\th\tentailment"]),
    }
    with pytest.raises(UserError, match=r"found 1 of 4 examples unusable .*25.0%\), expected at most 5.0%:\n.*de:5: "):
        read_parallel(files, NliTask.read)


def test_unequal_lengths_are_an_error(tmp_path: Path) -> None:
    files = {code: nli(tmp_path / code, ["p\th\tneutral"] * rows) for code, rows in {"en": 4, "de": 4, "fr": 3}.items()}
    with pytest.raises(UserError, match=r"en has 4 rows, .*fr has 3; expected row i to be the same"):
        read_parallel(files, NliTask.read)


def test_a_file_with_separate_rows_per_language_is_not_parallel(tmp_path: Path) -> None:
    """XNLI's dev and test files have this form; the error lists the missing rows."""
    path = tmp_path / "xnli.tsv"
    path.write_text("language\tpremise\thypo\tlabel\nde\tP\tH\tneutral\nen\tp\th\tneutral\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 of 1 .*\n.*tsv:3: not in de:.*\n.*tsv:2: not in en:"):
        read_parallel({"en": path, "de": path}, NliTask.read)


def test_classes_are_joined_by_row_and_need_equal_indices(tmp_path: Path) -> None:
    for code, indices in {"en": [7, 8, 9], "de": [7, 5, 9]}.items():
        rows = [f"{index}\tsports\ttext {index}" for index in indices]
        (tmp_path / code).write_text("\n".join(["index_id\tcategory\ttext", *rows]), encoding="utf-8")
    data = read_parallel(
        {code: tmp_path / code for code in ("en", "de")}, TextClassificationTask.read, max_rejected=0.5
    )
    assert data.rows == [0, 2]
    assert f"index '5', expected '8' as in {tmp_path / 'en'}" in str(data.rejected[0])


def test_questions_are_joined_by_id(tmp_path: Path) -> None:
    files = {
        "en": qa(tmp_path / "en", [("a", "one two", "two", 4), ("b", "x y", "y", 2), ("c", "u v", "v", 2)]),
        "de": qa(tmp_path / "de", [("c", "uu vv", "vv", 3), ("a", "eins zwei", "zwei", 5), ("d", "q", "q", 0)]),
    }
    data = read_parallel(files, QuestionAnsweringTask.read, max_rejected=0.5)
    assert data.rows == [0, 2]
    assert [example.context for example in data.examples["de"]] == ["eins zwei", "uu vv"]
    assert sorted(map(str, data.rejected)) == [
        f"{files['de']}: question d: not in en:{files['en']}",
        f"{files['en']}: question b: not in de:{files['de']}",
    ]


def test_a_question_with_a_wrong_span_in_one_language_is_listed_once(tmp_path: Path) -> None:
    files = {
        "en": qa(tmp_path / "en", [("a", "one two", "two", 4), ("b", "x y", "y", 2)]),
        "de": qa(tmp_path / "de", [("a", "eins zwei", "zwei", 0), ("b", "X Y", "Y", 2)]),
    }
    data = read_parallel(files, QuestionAnsweringTask.read, max_rejected=0.5)
    assert [example.id for example in data.examples["en"]] == ["b"]
    assert [str(reject).split(": ")[1] for reject in data.rejected] == ["question a"]
