"""Filters: each rule by hand-made pairs, properties of all rules, language identification on real text."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_fast.data.reading.filters import EXCLUDED, check_languages, check_pair, excluded_files, length
from ppa_fast.data.reading.formats import moses
from ppa_fast.data.reading.source import Pair, PairSource
from ppa_fast.errors import UserError
from ppa_fast.settings import Filters

FILE = Path("corpus.tsv")


def source(a: str, b: str) -> PairSource:
    return PairSource(a, b, [FILE], moses.read)


EN_DE = source("en", "de")
GERMAN = "Der Rat hat gestern einen neuen Haushalt beschlossen."
ENGLISH = "The council agreed on a new budget yesterday."


def check(filters: Filters, a: str, b: str, score: float | None = None, languages: PairSource = EN_DE) -> str:
    return check_pair(filters, Pair(a, b, a, score), languages)


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


def test_length_ratio_drops_pairs_above_it() -> None:
    filters = Filters(length_ratio=2.5)
    assert (
        check(filters, "ab", "abcde") == check(filters, "abcde", "ab") == ""
    )  # a pair with exactly this ratio is kept
    assert check(filters, "ab", "abcdef") == check(filters, "abcdef", "ab") == "length ratio over 2.5"


def test_length_bounds_are_inclusive() -> None:
    filters = Filters(min_length=3, max_length=5)
    assert check(filters, "abc", "abcde") == ""
    assert check(filters, "ab", "abcd") == check(filters, "abcd", "ab") == "under 3 characters"
    assert check(filters, "abc", "abcdef") == check(filters, "abcdef", "abc") == "over 5 characters"


def test_identical_sides_ignore_case_and_unicode_composition() -> None:
    filters = Filters(drop_identical=True)
    assert check(filters, "Zürich", "Zu\u0308rich") == "identical sides"
    assert check(filters, "STRASSE", "straße") == "identical sides"
    assert check(filters, "Paris", "París") == ""


def test_regular_expressions_keep_or_drop() -> None:
    filters = Filters(keep_match=(r"[^\W\d_]", r"\.$"), drop_match=("https?://", "(?i)lorem"))
    assert check(filters, "One.", "Eins.") == ""
    assert check(filters, "One.", "1.") == r"without match of [^\W\d_]"
    assert check(filters, "One", "Eins.") == r"without match of \.$"
    assert check(filters, "See http://x.org.", "Eins.") == "match of https?://"
    assert check(filters, "One.", "LOREM ipsum.") == "match of (?i)lorem"


def test_pairs_below_the_minimum_score_are_dropped() -> None:
    filters = Filters(min_score=0.5)
    assert [check(filters, "a", "b", score) for score in (0.5, 0.49, None)] == ["", "score under 0.5", "no score"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_ratio": 0.5}, "length_ratio: found 0.5, expected at least 1"),
        ({"length_ratio": float("nan")}, "length_ratio: found nan, expected a number"),
        ({"min_length": 0}, "min_length: found 0, expected at least 1"),
        ({"max_length": -1}, "max_length: found -1, expected at least 1"),
        ({"min_length": 9, "max_length": 8}, "min_length: found 9, expected at most max_length, 8"),
        ({"min_score": float("inf")}, "min_score: found inf, expected a number"),
        ({"keep_match": ("a", "b(")}, r"keep_match: found 'b\(', .*unterminated subpattern at character 2"),
        ({"drop_match": ("[a",)}, r"drop_match: found '\[a', .*unterminated character set at character 1"),
    ],
)
def test_an_invalid_option_is_named(options: dict, message: str) -> None:
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
    assert check_pair(Filters(), pair, EN_DE) == ""


@given(pairs, some_filters)
def test_a_pair_is_dropped_if_any_filter_drops_it(pair: Pair, filters: Filters) -> None:
    alone = [Filters(**{field.name: getattr(filters, field.name)}) for field in fields(Filters)]
    reasons = [reason for reason in (check_pair(each, pair, EN_DE) for each in alone) if reason]
    found = check_pair(pickle.loads(pickle.dumps(filters)), pair, EN_DE)  # as worker processes receive it
    assert found in reasons if reasons else found == ""


def test_pairs_that_share_a_sentence_with_an_excluded_set_are_dropped(tmp_path) -> None:
    (tmp_path / "dev.en").write_text("One.\nTwo.\n", encoding="utf-8")
    (tmp_path / "dev.fr").write_text("Un.\nDeux\u00ad.\n", encoding="utf-8")
    filters = Filters(exclude=(f"en-fr:{tmp_path}/dev.en,{tmp_path}/dev.fr",))
    assert excluded_files(filters) == [tmp_path / "dev.en", tmp_path / "dev.fr"]
    assert check(filters, "One.", "Eins.") == EXCLUDED  # in another language pair, too
    assert check(filters, "Dos.", " Deux.") == EXCLUDED  # as sentences are compared for groups
    assert check(filters, "One", "Eins.") == ""


def test_language_id_drops_other_languages() -> None:
    pytest.importorskip("py3langid")
    filters = Filters(language_id=True)
    assert check(filters, ENGLISH, GERMAN) == ""
    assert check(filters, ENGLISH, ENGLISH) == "not identified as de"
    assert check(filters, GERMAN, GERMAN) == "not identified as en"
    for a, b in (("Yes.", "Ja."), ("2019", "2019"), ("Angela Merkel", "Angela Merkel"), ("OK", "OK")):
        assert check(filters, a, b) == "", (a, b)  # too short to identify


def test_language_id_accepts_any_spelling_of_a_code() -> None:
    pytest.importorskip("py3langid")
    filters = Filters(language_id=True)
    norwegian = "Kommunen vedtok i går et nytt budsjett for neste år."
    for code in ("nb", "no", "nob"):
        assert check(filters, ENGLISH, norwegian, languages=source("eng", code)) == ""
    chinese = source("en_GB", "cmn_Hans")
    assert check(filters, ENGLISH, "市议会昨天通过了新的预算。", languages=chinese) == ""
    assert check(filters, ENGLISH, GERMAN, languages=chinese) == "not identified as cmn_Hans"
    with pytest.raises(
        UserError, match=r"--language-id: found the language got, expected one of the 1.. that py3langid"
    ):
        check_languages(filters, [EN_DE, source("en", "got")])
    check_languages(Filters(), [source("en", "got")])


def test_language_id_without_its_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(UserError, match=r"^language_id: .*pip install 'ppa-fast\[langid\]'"):
        Filters(language_id=True)


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA names no folder of real text")
def test_language_id_keeps_real_text_and_drops_other_languages() -> None:
    """The figures beside ``OTHER_TIMES``, on a quarter of the pairs of Tatoeba, which are the shortest real lines
    available."""
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
