"""Filters: each rule by hand-made pairs, what they share as properties, language identification on real text."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.data.filters import Filters, length
from ppa_fast.data.formats import moses
from ppa_fast.data.source import Pair, PairSource
from ppa_fast.errors import UserError

FILE = Path("corpus.tsv")


def source(a: str, b: str) -> PairSource:
    return PairSource(a, b, [FILE], moses.read)


EN_DE = source("en", "de")
GERMAN = "Der Rat hat gestern einen neuen Haushalt beschlossen."
ENGLISH = "The council agreed on a new budget yesterday."


def check(filters: Filters, a: str, b: str, score: float | None = None, languages: PairSource = EN_DE) -> str:
    return filters.check(Pair(a, b, a, score), languages)


def test_lengths_count_wide_characters_threefold() -> None:
    assert [length(text) for text in ("four", "façade", "汉字", "かな", "한글", "汉a", "ภาษา", "😀")] == [
        4,
        6,
        6,
        6,
        6,
        4,
        4,
        1,
    ]
    assert check(Filters(length_ratio=1), "abc", "汉") == ""


def test_length_ratio() -> None:
    filters = Filters(length_ratio=2.5)
    assert check(filters, "ab", "abcde") == check(filters, "abcde", "ab") == ""  # the ratio itself is kept
    assert check(filters, "ab", "abcdef") == check(filters, "abcdef", "ab") == "length ratio over 2.5"


def test_length_bounds() -> None:
    filters = Filters(min_length=3, max_length=5)
    assert check(filters, "abc", "abcde") == ""
    assert check(filters, "ab", "abcd") == check(filters, "abcd", "ab") == "under 3 characters"
    assert check(filters, "abc", "abcdef") == check(filters, "abcdef", "abc") == "over 5 characters"


def test_identical_sides_whatever_case_and_composition() -> None:
    filters = Filters(drop_identical=True)
    assert check(filters, "Zürich", "Zu\u0308rich") == "identical sides"
    assert check(filters, "STRASSE", "straße") == "identical sides"
    assert check(filters, "Paris", "París") == ""


def test_regular_expressions() -> None:
    filters = Filters(keep_match=(r"[^\W\d_]", r"\.$"), drop_match=("https?://", "(?i)lorem"))
    assert check(filters, "One.", "Eins.") == ""
    assert check(filters, "One.", "1.") == r"without match of [^\W\d_]"
    assert check(filters, "One", "Eins.") == r"without match of \.$"
    assert check(filters, "See http://x.org.", "Eins.") == "match of https?://"
    assert check(filters, "One.", "LOREM ipsum.") == "match of (?i)lorem"


def test_score() -> None:
    filters = Filters(min_score=0.5)
    assert [check(filters, "a", "b", score) for score in (0.5, 0.49, None)] == ["", "score under 0.5", "no score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_ratio": 0.5}, "--length-ratio 0.5: expected a number of at least 1"),
        ({"length_ratio": float("nan")}, "--length-ratio nan"),
        ({"min_length": 0}, "--min-length 0: expected at least 1"),
        ({"max_length": -1}, "--max-length -1: expected at least 1"),
        ({"min_length": 9, "max_length": 8}, "--min-length 9 is over --max-length 8"),
        ({"min_score": float("inf")}, "--min-score inf"),
        ({"keep_match": ("a", "b(")}, r"--keep-match 'b\(': .*unterminated subpattern at character 2"),
        ({"drop_match": ("[a",)}, r"--drop-match '\[a': .*unterminated character set at character 1"),
    ],
)
def test_a_bad_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Filters(**options)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
pairs = st.builds(lambda a, b, score: Pair(a, b, a, score), texts, texts, st.none() | st.floats(0, 1))
some_filters = st.builds(
    Filters,
    length_ratio=st.none() | st.floats(1, 3),
    min_length=st.none() | st.integers(1, 3),
    max_length=st.none() | st.integers(3, 9),
    drop_identical=st.booleans(),
    keep_match=st.sampled_from([(), (r"\w",)]),
    drop_match=st.sampled_from([(), ("0",)]),
    min_score=st.none() | st.floats(0, 1),
)


@given(pairs)
def test_filters_that_are_off_keep_everything(pair: Pair) -> None:
    assert Filters().check(pair, EN_DE) == ""


@given(pairs, some_filters)
def test_a_pair_is_dropped_if_one_of_the_filters_alone_drops_it(pair: Pair, filters: Filters) -> None:
    alone = [Filters(**{field.name: getattr(filters, field.name)}) for field in fields(Filters)]
    reasons = [reason for reason in (each.check(pair, EN_DE) for each in alone) if reason]
    found = pickle.loads(pickle.dumps(filters)).check(pair, EN_DE)  # as worker processes get it
    assert found in reasons if reasons else found == ""


def test_language_id() -> None:
    pytest.importorskip("py3langid")
    filters = Filters(language_id=True)
    assert check(filters, ENGLISH, GERMAN) == ""
    assert check(filters, ENGLISH, ENGLISH) == "not identified as de"
    assert check(filters, GERMAN, GERMAN) == "not identified as en"
    for a, b in (("Yes.", "Ja."), ("2019", "2019"), ("Angela Merkel", "Angela Merkel"), ("OK", "OK")):
        assert check(filters, a, b) == "", (a, b)  # too short to tell


def test_language_id_knows_codes_as_they_are_spelled() -> None:
    pytest.importorskip("py3langid")
    filters = Filters(language_id=True)
    norwegian = "Kommunen vedtok i går et nytt budsjett for neste år."
    for code in ("nb", "no", "nob"):
        assert check(filters, ENGLISH, norwegian, languages=source("eng", code)) == ""
    chinese = source("en_GB", "cmn_Hans")
    assert check(filters, ENGLISH, "市议会昨天通过了新的预算。", languages=chinese) == ""
    assert check(filters, ENGLISH, GERMAN, languages=chinese) == "not identified as cmn_Hans"
    with pytest.raises(UserError, match=r"--language-id: got is not among the 1.. languages"):
        filters.check_languages([EN_DE, source("en", "got")])
    Filters().check_languages([source("en", "got")])


def test_language_id_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppa_fast.data import filters as module

    module._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"--language-id: .*pip install 'ppa-fast\[langid\]'"):
        Filters(language_id=True)


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA names no folder of real text")
def test_real_text_passes_and_other_languages_do_not() -> None:
    """The figures beside ``OTHER_TIMES``, on a quarter of Tatoeba's pairs: the shortest real lines there are."""
    pytest.importorskip("py3langid")
    filters = Filters(language_id=True, length_ratio=4)
    folder = Path(os.environ["PPA_FAST_TEST_DATA"]) / "tatoeba"
    for code in ("cmn", "deu", "hin", "rus", "swh", "tha"):
        sides = [
            (folder / f"tatoeba.{code}-eng.{side}").read_text(encoding="utf-8").splitlines() for side in (code, "eng")
        ]
        pairs = list(zip(*sides, strict=True))[::4]
        languages = source(code, "eng")
        kept = sum(check(filters, a, b, languages=languages) == "" for a, b in pairs)
        dropped = sum(check(filters, b, b, languages=languages) == f"not identified as {code}" for _, b in pairs)
        assert kept >= 0.98 * len(pairs), code
        assert dropped >= 0.98 * len(pairs), code
