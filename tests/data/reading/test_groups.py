"""Texts that count as the same sentence."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from ppa_fast.data.reading.corpus import parse_pairs
from ppa_fast.data.reading.groups import comparison_form, sentence_group


def test_sentence_group_is_a_hash_of_the_comparison_form() -> None:
    # Known answer of the reference implementation: XXH3-64 of the empty string is 2d06800538d394c2.
    assert sentence_group(" \n") == 0x2D06800538D394C2
    composed = "Caf\u00e9 \u00c5"
    assert sentence_group(composed) == sentence_group(f" {unicodedata.normalize('NFD', composed)}\u2009")
    assert len({sentence_group(text) for text in (composed, composed.lower(), "Cafe A", composed + ".")}) == 4
    groups = [sentence_group(str(number)) for number in range(200)]
    assert min(groups) < 0 < max(groups)
    assert all(-(1 << 63) <= group < 1 << 63 for group in groups)


@pytest.mark.parametrize(
    "text",
    [
        "\u200bThe house is green.",
        "\ufeffThe house is green.",
        "The house is gre\u00aden.",
        "The house\u200d is green.\u2060",
        "The house is green.\ufe0f",
        "\u202aThe house is green.\u202c ",
    ],
)
def test_invisible_characters_do_not_change_the_group(text: str) -> None:
    assert comparison_form(text) == "The house is green."
    assert sentence_group(text) == sentence_group("The house is green.")


def test_visible_characters_change_the_group() -> None:
    texts = ["a b", "a\u00a0b", "a-b", "ab", "A b", "a b.", "a  b"]
    assert len({sentence_group(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("name", "pivot"),
    [("de-en_GB", 1), ("fr-en_US", 1), ("en_GB-de", 0), ("en_GB-en", 0), ("de-eng", 1), ("de-fr", 0), ("de-ang", 0)],
)
def test_english_of_any_region_is_the_pivot(name: str, pivot: int, tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("a\tb\n", encoding="utf-8")
    assert parse_pairs(f"{name}:{file}").pivot == pivot
