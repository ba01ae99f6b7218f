"""Statistics: against values computed by hand or taken from published tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppa_fast.ablation.statistics import chance, least_sign_flip_p, needed, paired, t_test


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (12.706, 1, 0.05),  # the standard table of Student's t
        (4.303, 2, 0.05),
        (9.925, 2, 0.01),
        (3.182, 3, 0.05),
        (2.776, 4, 0.05),
        (2.571, 5, 0.05),
        (2.228, 10, 0.05),
        (2.262, 9, 0.05),
        (0.0, 4, 1.0),
    ],
)
def test_t_test_equals_published_values(t: float, freedom: int, p: float) -> None:
    assert t_test(t, freedom) == pytest.approx(p, rel=2e-3)
    assert t_test(-t, freedom) == t_test(t, freedom)


def test_paired_differences_equal_hand_computed_values() -> None:
    result = paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # 1, 2, 3: mean 2, sd 1, t = 2 / (1 / √3) = 3.464
    assert (result["mean"], result["sd"]) == (2.0, 1.0)
    # Two degrees of freedom: p = 1 − t / √(2 + t²) = 1 − 3.464 / √14.
    assert result["p"] == pytest.approx(1 - (12 / 14) ** 0.5)


def test_differences_without_spread_have_limiting_p_values() -> None:
    assert paired([2.0], [1.0])["p"] is None
    assert paired([2.0, 3.0], [1.0, 2.0])["p"] == 0.0
    assert paired([2.0, 3.0], [2.0, 3.0])["p"] == 1.0


def test_least_p_of_sign_flips_is_exact() -> None:
    assert least_sign_flip_p(3) == 0.25
    assert least_sign_flip_p(6) == 0.03125


def test_chance_of_classes_is_the_share_of_the_most_frequent(tmp_path: Path) -> None:
    nli, topic = tmp_path / "nli.tsv", tmp_path / "topic.tsv"
    labels = ["neutral"] * 5 + ["entailment"] * 3
    nli.write_text("premise\thypo\tlabel\n" + "".join(f"a\tb\t{x}\n" for x in labels), encoding="utf-8")
    topic.write_text("text\tcategory\n" + "".join(f"a\t{x}\n" for x in "abba" * 2 + "a"), encoding="utf-8")
    assert chance("nli", nli) == (5 / 8, 8)
    assert chance("classify", topic) == (5 / 9, 9)


def test_chance_of_xnli_counts_only_english(tmp_path: Path) -> None:
    path = tmp_path / "xnli.tsv"
    rows = [("en", "neutral"), ("en", "neutral"), ("en", "entailment"), *[("de", "entailment")] * 5]
    text = "".join(f"{code}\t{label}\ta\tb\n" for code, label in rows)
    path.write_text("language\tgold_label\tsentence1\tsentence2\n" + text, encoding="utf-8")
    assert chance("nli", path) == (2 / 3, 3)


def test_chance_of_tags_is_the_score_of_the_most_frequent(tmp_path: Path) -> None:
    pos, entities = tmp_path / "pos.tsv", tmp_path / "entities.tsv"
    pos.write_text("a\tNOUN\nb\tVERB\n\nc\tNOUN\n", encoding="utf-8")
    entities.write_text("a\tO\nb\tO\nc\tB-LOC\n", encoding="utf-8")
    assert chance("tagging", pos) == (2 / 3, 2)
    assert chance("tagging", entities) == (0.0, 1)


def test_chance_of_answers_is_the_score_of_the_complete_context(tmp_path: Path) -> None:
    # "two" of "one two three four": precision 1/4, recall 1, F1 0.4; "one two three": 3/4 and 1, F1 6/7.
    answers = [("1", "two", 4), ("2", "one two three", 0)]
    qas = [{"id": i, "question": "q", "answers": [{"text": text, "answer_start": at}]} for i, text, at in answers]
    data = {"data": [{"title": "t", "paragraphs": [{"context": "one two three four", "qas": qas}]}]}
    path = tmp_path / "qa.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    share, n = chance("qa", path)
    assert share == pytest.approx((0.4 + 6 / 7) / 2)
    assert n == 2


def test_needed_score_is_three_binomial_deviations_above_chance() -> None:
    assert needed(0.25, 300) == pytest.approx(0.25 + 3 * (0.25 * 0.75 / 300) ** 0.5)  # 0.325
    assert needed(0.25, 300) == pytest.approx(0.325)
