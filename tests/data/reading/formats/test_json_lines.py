import json

import pytest

from ppa_fast.data.reading.lines import MAX_LINE_BYTES
from tests.data.reading.formats.conftest import Found, Read


def test_fields_are_found_by_language_or_by_name(read: Read) -> None:
    row = {"de": " eins ", "en": "one\u2028", "score": 0.5}
    assert read("t.jsonl", json.dumps(row)) == [("one", "eins")]
    assert read("t.jsonl", json.dumps(row), score_column="score") == [("one", "eins", 0.5)]
    assert read("t.ndjson", json.dumps({"src": "one", "tgt": "eins"}), columns=("src", "tgt")) == [("one", "eins")]
    nested = {"id": "7", "translation": {"en": "one", "de": "eins"}, "score": "1"}
    assert read("t.jsonl", json.dumps(nested), score_column="score") == [("one", "eins", 1.0)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ('{"en": "a", "de": "b"', "not a JSON object"),
        ("[" * 30_000, "not a JSON object"),
        ('{"en": ' + "9" * 5_000 + "}", "not a JSON object"),
        ('{"en": "a"}', "no field de; see --columns"),
        ('{"translation": {"de": "b"}}', "no field en; see --columns"),
        ('{"en": 1, "de": "b"}', "text is not a string"),
        ('{"en": ["a"], "de": "b"}', "text is not a string"),
        ('{"en": null, "de": "b"}', "empty side"),
        ('{"en": " ", "de": "b"}', "empty side"),
        (r'{"en": "\ud800", "de": "b"}', "lone surrogate"),
        (r'{"en": "a\u0000", "de": "b"}', "NUL character"),
        ('{"en": "a", "de": "b", "score": "high"}', "score is not a number"),
        ('{"en": "a", "de": "b", "score": Infinity}', "score is not a number"),
        ('{"en": "a", "de": "b", "score": {}}', "score is not a number"),
        ('{"en": "' + "x" * MAX_LINE_BYTES + '"}', "line over 64 KiB"),
    ],
)
def test_a_bad_line_does_not_affect_other_lines(read: Read, line: str, reason: str) -> None:
    good = '{"en": "one", "de": "eins"}\n'
    expected: list[Found] = [("one", "eins"), f"reject: {reason}", ("one", "eins")]
    assert read("t.jsonl", f"{good}{line}\n{good}", score_column="score") == expected
