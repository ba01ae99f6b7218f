"""Files of classified texts."""

from __future__ import annotations

from pathlib import Path

from ppa_fast.tasks.classification import TextExample, read_classification


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_classified_texts_are_read(tmp_path: Path) -> None:
    lines = ["index_id\tcategory\ttext", "7\tsports\tA goal .", "8\t\tNo label", "9\ttravel\t ", "10\ttravel\ta\tb"]
    path = write(tmp_path / "t.tsv", *lines, "11\ttravel\tA trip")
    examples, rejected = read_classification(path)
    assert examples == [TextExample("A goal .", "sports", 0, "7"), TextExample("A trip", "travel", 4, "11")]
    assert [(r.line, r.reason) for r in rejected] == [
        (3, "no label"),
        (4, "no text"),
        (5, "found 4 columns, expected 3 as in the header"),
    ]
    examples, rejected = read_classification(path, labels=["travel"])
    assert [e.row for e in examples] == [4]
    assert str(rejected[0]) == f"{path}:2: label 'sports', expected one of travel"
    plain = write(tmp_path / "p.tsv", "text\tlabel", "a b\tx")
    assert read_classification(plain) == ([TextExample("a b", "x", 0)], [])


def test_numbers_as_labels_and_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", '{"text": "a dog", "label": 0, "index_id": 7}', '{"text": "a cat", "label": 1}')
    assert read_classification(path) == ([TextExample("a dog", "0", 0, "7"), TextExample("a cat", "1", 1)], [])
