"""Scores over seeds, by hand."""

from __future__ import annotations

import pytest

from ppa_fast.finetune.table import format_table, summarise

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
    assert format_table(summarise(TESTS), scale=100).splitlines() == [
        "| language | accuracy |",
        "|---|---:|",
        "| en | 85.0 ± 7.1 |",
        "| de | 60.0 ± 14.1 |",
        "| mean | 72.5 ± 10.6 |",
    ]


def test_one_seed_has_no_deviation() -> None:
    result = summarise([{"en": {"f1": 50.0}}])
    assert result["languages"]["en"]["f1"]["sd"] is None
    assert format_table(result, scale=1).splitlines()[2:] == ["| en | 50.0 |"]


def test_without_test_sets_there_is_nothing_to_say() -> None:
    assert format_table(summarise([{}, {}]), scale=1) == "No test sets were given."
