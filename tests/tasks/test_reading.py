"""Shared readers of the tasks: JSON, rejected rows, files by language, output files; real files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from ppa_fast.data.reading.languages import parse_files
from ppa_fast.errors import UserError
from ppa_fast.files import output_file
from ppa_fast.tasks.classification import read_classification
from ppa_fast.tasks.nli import read_nli
from ppa_fast.tasks.question_answering import read_qa
from ppa_fast.tasks.reading import format_rejected, load_json


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_json_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(UserError, match=r"q\.json: not UTF-8"):
        load_json(tmp_path / "q.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert load_json(tmp_path / "b.json") == [1]


def test_rejected_rows_are_listed_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "text\tlabel", *["x"] * 30)
    lines = format_rejected(read_classification(path)[1]).splitlines()
    assert len(lines) == 21
    assert lines[0] == f"{path}:2: found 1 columns, expected 2 as in the header"
    assert lines[-1] == "… and 10 more, 30 rejected in all"
    assert format_rejected([]) == ""


def test_files_by_language_are_parsed(tmp_path: Path) -> None:
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


def test_an_output_file_is_never_a_device_and_links_are_followed(tmp_path: Path) -> None:
    """As root, replacing /dev/stdout with a file would break the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent" / "file", tmp_path / "pipe", tmp_path / "device"):
        with pytest.raises(UserError, match=f"--json {path}: expected a regular file in an existing folder"):
            output_file(path, "--json")
    (tmp_path / "link").symlink_to(tmp_path / "scores.json")
    for name in ("link", "scores.json"):
        assert output_file(tmp_path / name, "--json") == tmp_path.resolve() / "scores.json"


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_real_files_are_read_completely() -> None:
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
