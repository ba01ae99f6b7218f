"""Question answering files: the SQuAD format, and content that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppa_fast.errors import UserError
from ppa_fast.tasks.question_answering import QaExample, read_gold, read_qa


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def squad(path: Path, *questions: dict[str, Any], context: str = "Er war 12 Jahre in Köln.") -> Path:
    data = [{"title": "K", "paragraphs": [{"context": context, "qas": list(questions)}]}]
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


def asked(id_: str, *answers: tuple[str, int], **fields: Any) -> dict[str, Any]:
    return {"id": id_, "question": "Wo?", "answers": [{"text": t, "answer_start": s} for t, s in answers], **fields}


def test_squad_files_are_read(tmp_path: Path) -> None:
    path = squad(tmp_path / "q.json", asked("a", ("Köln", 19), ("in Köln", 16)))
    context = "Er war 12 Jahre in Köln."
    assert read_qa(path) == ([QaExample("a", "Wo?", context, (("Köln", 19), ("in Köln", 16)), "K")], [])


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (asked("b", ("Köln", 18)), "found ' Köl' at character 18 of the context, expected answer 'Köln'"),
        (asked("b", ("Köln", 19), ("Bonn", 19)), "found 'Köln' at character 19 of the context, expected answer 'Bonn'"),
        (asked("b", (".", -1)), "found '' at character -1 of the context, expected answer '.'"),
        (asked("b", ("", 3)), "found '' at character 3 of the context, expected answer ''"),
        (asked("b", ("12", 99)), "found '' at character 99 of the context, expected answer '12'"),
        ({"id": "b", "question": "Wo?", "answers": [{"text": "Köln"}]}, "found '' at character -1 of the "),
        (asked("b", ("Köln", 19), question=" "), "no question"),
        (asked("b"), "no answer"),
        (asked("a", ("Köln", 19)), "repeated id"),
    ],
)
def test_an_unusable_question_is_rejected(tmp_path: Path, question: dict[str, Any], reason: str) -> None:
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
        ("[]", "the file: data: found 'None', expected a list as in SQuAD 1.1"),
        ('{"data": []}', "no rows"),
        ('{"data": [{}]}', r"data\[0\]: paragraphs: found 'None', expected a list"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": [3]}]}]}]}',
            r"data\[0\].paragraphs\[0\].qas\[0\]: id: found '\[3\]', expected text",
        ),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "u", "answers": "x"}]}]}]}', "u: answers: found 'x', expected a"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "u", "answers": [{}]}]}]}]}', "u: text: found 'None', expected"),
    ],
)
def test_an_invalid_squad_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_qa(path)


def test_numbers_as_ids(tmp_path: Path) -> None:
    (example,), rejected = read_qa(squad(tmp_path / "q.json", {**asked("", ("Köln", 19)), "id": 12}))
    assert (example.id, rejected) == ("12", [])
