"""Accuracy and macro-F1 of labels, in files by language."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.errors import UserError
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.nli import read_nli
from ppa_fast.tasks.sequence_classification import accuracy, format_table, macro_f1, read_labels, score_labels

LABELS = st.lists(st.tuples(*[st.sampled_from("abcd")] * 2), min_size=1, max_size=30)


def test_macro_f1_equals_hand_computed_values() -> None:
    gold, predicted = list("aaabbc"), list("aabbad")
    # a: 2 of 3 and of 3: 2/3. b: 1 of 2 and of 2: 1/2. c: none. d: predicted only, none.
    assert macro_f1(gold, predicted) == pytest.approx((2 / 3 + 1 / 2 + 0 + 0) / 4)
    assert accuracy(gold, predicted) == 0.5
    assert score_labels(gold, gold) == {"accuracy": 1.0, "macro_f1": 1.0, "n": 6}
    # All predictions are the majority label: accuracy 3/6; F1 of a 2·3/(3 + 6), of the others 0.
    assert score_labels(gold, ["a"] * 6) == {"accuracy": 0.5, "macro_f1": pytest.approx(2 / 9), "n": 6}


@settings(deadline=None)  # the first call imports scikit-learn
@given(LABELS)
def test_macro_f1_equals_scikit_learns(rows: list[tuple[str, str]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    gold, predicted = zip(*rows, strict=True)
    assert macro_f1(gold, predicted) == pytest.approx(
        metrics.f1_score(gold, predicted, average="macro", zero_division=0)
    )
    assert accuracy(gold, predicted) == pytest.approx(metrics.accuracy_score(gold, predicted))


@settings(deadline=None)
@given(LABELS, st.randoms())
def test_order_and_names_do_not_matter(rows: list[tuple[str, str]], order) -> None:
    scores = score_labels(*zip(*rows, strict=True))
    order.shuffle(rows)
    renamed = [(chr(ord("d") - ord(g) + ord("a")), chr(ord("d") - ord(p) + ord("a"))) for g, p in rows]
    assert score_labels(*zip(*renamed, strict=True)) == pytest.approx(scores)


@pytest.mark.parametrize(("gold", "predicted"), [("ab", "a"), ("", "")])
def test_unequal_numbers_of_labels_are_an_error(gold: str, predicted: str) -> None:
    with pytest.raises(UserError, match="expected equal, non-zero counts"):
        score_labels(list(gold), list(predicted))


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def nli(path: Path, *labels: str, language: str = "") -> str:
    """NLI rows with these labels; ``language`` "en zh" adds a language column, row by row."""
    rows = [f"p{i}\th\t{label}" for i, label in enumerate(labels)]
    header = "premise\thypo\tlabel"
    if language:
        rows = [f"{row}\t{code}" for row, code in zip(rows, language.split(), strict=True)]
        header += "\tlanguage"
    return write(path, header, *rows)


def test_a_file_is_scored(tmp_path: Path) -> None:
    gold = nli(tmp_path / "g.tsv", "neutral", "entailment", "contradictory", "neutral")
    predictions = write(tmp_path / "p.txt", "neutral", " entailment\r", "contradiction", "entailment")
    result = evaluate("nli", gold=[gold], predictions=[predictions])
    scores = {"accuracy": 0.75, "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3), "n": 4}
    assert result == {"accuracy": 0.75, "macro_f1": scores["macro_f1"], "languages": {"und": scores}}
    assert format_table(result).splitlines()[1:] == [
        "language      accuracy      macro_f1             n",
        "und               75.0          77.8             4",
    ]
    assert evaluate("nli", gold=[f"sw:{gold}"], predictions=[predictions])["languages"] == {"sw": scores}


def test_languages_are_scored_with_their_mean(tmp_path: Path) -> None:
    gold = [
        f"{code}:{nli(tmp_path / code, *labels)}" for code, labels in {"de": ["neutral"] * 3, "th": ["neutral"]}.items()
    ]
    right, wrong = write(tmp_path / "r", "neutral"), write(tmp_path / "w", "entailment", "neutral", "neutral")
    result = evaluate("nli", gold=gold, predictions=[f"th:{right}", f"de:{wrong}"])
    assert result["languages"]["de"] == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.4), "n": 3}
    assert (result["accuracy"], result["macro_f1"]) == (pytest.approx(5 / 6), pytest.approx(0.7))
    assert format_table(result).splitlines()[-1].split() == ["mean", "83.3", "70.0", "4"]


def test_a_file_of_many_languages_is_scored_by_language(tmp_path: Path) -> None:
    labels, languages = ["neutral", "entailment", "neutral", "entailment"], "en zh en zh"
    gold = nli(tmp_path / "xnli.tsv", *labels, language=languages)
    predictions = write(tmp_path / "p.txt", "neutral", "neutral", "neutral", "entailment")
    result = evaluate("nli", gold=[gold], predictions=[predictions])
    assert {code: s["accuracy"] for code, s in result["languages"].items()} == {"en": 1.0, "zh": 0.5}
    assert result["accuracy"] == 0.75
    # For one language: only its rows, and an equal number of predictions.
    chinese = evaluate("nli", gold=[f"zh:{gold}"], predictions=[write(tmp_path / "zh.txt", "neutral", "entailment")])
    assert chinese["languages"] == {"zh": result["languages"]["zh"]}
    # Or with the predictions of the complete file.
    assert evaluate("nli", gold=[f"zh:{gold}"], predictions=[f"zh:{predictions}"]) == chinese
    with pytest.raises(UserError, match="no rows to score in language de"):
        evaluate("nli", gold=[f"de:{gold}"], predictions=[predictions])


def test_rows_without_a_gold_label_are_not_scored(tmp_path: Path, caplog) -> None:
    gold = nli(tmp_path / "g.tsv", "neutral", "-", "entailment")
    result = evaluate("nli", gold=[gold], predictions=[write(tmp_path / "p", "neutral", "entailment")])
    assert result["languages"]["und"] == {"accuracy": 1.0, "macro_f1": 1.0, "n": 2}
    assert caplog.messages == [f"{gold}: 1 rows without a gold label are not scored"]
    every_row = write(tmp_path / "q", "neutral", "entailment", "entailment")
    assert evaluate("nli", gold=[gold], predictions=[every_row]) == result
    message = "r: found 1 labels, expected 2, one per scored row, or 3, one per row of the gold file"
    with pytest.raises(UserError, match=message):
        evaluate("nli", gold=[gold], predictions=[write(tmp_path / "r", "neutral")])


def test_topic_files_are_scored(tmp_path: Path, caplog) -> None:
    gold = write(tmp_path / "g.tsv", "index_id\tcategory\ttext", "1\tsports\ta", "2\ttravel\tb", "3\ttravel\tc")
    predictions = write(tmp_path / "p.txt", "sports", "travel", "Travel")
    result = evaluate("classify", gold=[gold], predictions=[predictions])
    # sports 1, travel 2·1/(2 + 1), Travel 0.
    assert result["languages"]["und"] == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(5 / 9), "n": 3}
    assert caplog.messages == [f"{predictions}: labels that do not occur in the gold rows: Travel"]


def test_invalid_arguments_are_an_error(tmp_path: Path) -> None:
    gold = nli(tmp_path / "g.tsv", "neutral", "neutral")
    good = write(tmp_path / "good", "neutral", "neutral")
    bad_row = nli(tmp_path / "b.tsv", "neutral", "maybe", "perhaps")
    empty = write(tmp_path / "empty", "neutral", "", "neutral")
    odd = write(tmp_path / "odd", "neutral", "3")
    for task, options, message in (
        (
            "nli",
            {"gold": [bad_row]},
            r"b.tsv:3: label 'maybe', expected one of .*\n.*b.tsv:4: .*\nfound 2 unusable rows, expected none in an",
        ),
        ("nli", {"predictions": [empty]}, "empty:2: found an empty line, expected a label"),
        ("nli", {"predictions": [odd]}, "odd:2: label '3', expected one of entailment, neutral, contradiction"),
        (
            "nli",
            {"predictions": [write(tmp_path / "short", "neutral")]},
            "short: found 1 labels, expected 2, one per scored row",
        ),
        ("nli", {"predictions": None}, "predictions and model: found neither, expected one of them"),
        ("nli", {"model": "m"}, r"predictions and model: found both \(.* and m\), expected one of them"),
        ("nli", {"gold": [f"en:{gold}", f"de:{gold}"]}, "found files for en, expected one for each of en, de"),
        ("nli", {"gold": [gold, gold]}, "expected LANG:FILE"),
        ("classify", {"gold": [gold]}, "found .*, expected JSON lines or a header with the columns text"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(task, **{"gold": [gold], "predictions": [good], **options})


def test_labels_of_a_file_are_read(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path / "p", "a b", "\ufeffc ", "d\u2028e")) == ["a b", "c", "d\u2028e"]
    (tmp_path / "q").write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match="q:2: not UTF-8"):
        read_labels(tmp_path / "q")


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
def test_gold_labels_of_real_files_score_1(tmp_path: Path) -> None:
    data = Path(os.environ["PPA_FAST_TEST_DATA"])
    gold, predictions = [], []
    for code in ("ar", "en", "zh"):
        path = data / "nli" / f"multinli.{code}.tsv"
        gold.append(f"{code}:{path}")
        predictions.append(f"{code}:{write(tmp_path / code, *(e.label for e in read_nli(path)[0]))}")
    result = evaluate("nli", gold=gold, predictions=predictions)
    assert result["languages"] == {code: {"accuracy": 1.0, "macro_f1": 1.0, "n": 12000} for code in ("ar", "en", "zh")}
    assert json.loads(json.dumps(result)) == result
