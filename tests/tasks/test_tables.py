"""Scores over several seeds, computed by hand."""

from __future__ import annotations

import pytest

from ppa_fast.tasks.tables import format_seeds, summarise

TESTS = [
    {"en": {"accuracy": 0.8}, "de": {"accuracy": 0.5}},
    {"en": {"accuracy": 0.9}, "de": {"accuracy": 0.7}},
]


def test_means_and_standard_deviations_over_seeds() -> None:
    result = summarise(TESTS)
    assert result["languages"]["en"]["accuracy"]["mean"] == pytest.approx(0.85)
    assert result["languages"]["de"]["accuracy"]["sd"] == pytest.approx(0.2 / 2**0.5)
    assert result["mean"]["accuracy"]["seeds"] == pytest.approx([0.65, 0.8])
    assert result["mean"]["accuracy"]["sd"] == pytest.approx(0.15 / 2**0.5)


def test_the_table_is_in_per_cent() -> None:
    assert format_seeds({**summarise(TESTS), "n": {"en": 1200, "de": 800}}, scale=100).splitlines() == [
        "| language | accuracy | n |",
        "| --- | ---: | ---: |",
        "| en | 85.0 ± 7.1 | 1,200 |",
        "| de | 60.0 ± 14.1 | 800 |",
        "| mean | 72.5 ± 10.6 | 2,000 |",
    ]


def test_one_seed_has_no_standard_deviation() -> None:
    result = summarise([{"en": {"f1": 50.0}}])
    assert result["languages"]["en"]["f1"]["sd"] is None
    assert format_seeds({**result, "n": {"en": 7}}, scale=1).splitlines()[2:] == ["| en | 50.0 | 7 |"]


def test_missing_test_sets_give_a_note() -> None:
    assert format_seeds(summarise([{}, {}]), scale=1) == "No test sets were given."
