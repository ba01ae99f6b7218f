"""Exact match and F1 of answers: every rule of the official scripts of MLQA and SQuAD 1.1, computed by hand."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppa_fast.errors import UserError
from ppa_fast.tasks import evaluate
from ppa_fast.tasks.qa_metrics import exact_match, mlqa_tokens, score_answers, squad_tokens, token_f1
from ppa_fast.tasks.question_answering import QaExample, format_table, read_predictions

LANGUAGES = ["en", "es", "de", "vi", "ar", "hi", "zh"]


@pytest.mark.parametrize(
    ("language", "articles"),
    [
        ("en", "a an the"),
        ("es", "un una unos unas el la los las"),
        ("de", "ein eine einen einem eines einer der die das den dem des"),
        ("vi", "của là cái chiếc những"),
        ("hi", ""),
        ("zh", ""),
    ],
)
def test_articles_are_whole_words_of_their_language(language: str, articles: str) -> None:
    everything = (
        "a an the un una unos unas el la los las ein eine einen einem eines einer der die das den dem des của là"
    )
    everything += " cái chiếc những unser theatre thé deren ella laß nhữnga eins"
    expected = [word for word in everything.split() if word not in articles.split()]
    assert mlqa_tokens(everything, language) == expected
    assert mlqa_tokens(everything.upper(), language) == [word.upper().lower() for word in expected]


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        # Punctuation is removed without a space; then an article is replaced by a space.
        ("en", "the-cat", ["thecat"]),
        ("en", "cat's a b", ["cats", "b"]),
        ("en", "«The» U.S. – “Big” C++ $5 x^2 a~b", ["us", "big", "c", "5", "x2", "ab"]),
        ("en", "50 € ° §1 ×", ["50", "€", "°", "1", "×"]),  # § is punctuation (Po); €, °, × are symbols
        ("en", "a_the", ["athe"]),  # the underscore is punctuation (Pc), and is removed before words are split
        ("en", "x\u00a0y\u3000z\u2003w\tv\u200bu", ["x", "y", "z", "w", "v\u200bu"]),  # U+200B is not white space
        ("en", "the\u0301 cat", ["\u0301", "cat"]),  # a combining mark is not a letter, so "the" is a word before it
        ("vi", "cu\u0309a là".replace("là", unicodedata.normalize("NFD", "là")), ["cu\u0309a", "la\u0300"]),
        ("vi", "Của những người", ["người"]),
        ("es", "¿El perro? ¡La niña!", ["perro", "niña"]),
        ("de", "Das Haus der Mütter, Straße", ["haus", "mütter", "straße"]),
        ("hi", "भारत की राजधानी, दिल्ली।", ["भारत", "की", "राजधानी", "दिल्ली"]),  # the danda is punctuation
        # ال is replaced by a space everywhere: at the start, after a prefix, inside, alone, twice.
        ("ar", "الكتاب", ["كتاب"]),
        ("ar", "والكتاب", ["و", "كتاب"]),
        ("ar", "سؤال عن المالية", ["سؤ", "عن", "م", "ية"]),
        ("ar", "ال", []),
        ("ar", "اللال؟", ["ل"]),
        ("ar", "الْكتاب", ["ْكتاب"]),
        # Each Chinese character is a token; other text is split at white space, after punctuation is removed.
        ("zh", "黑豹队NFL冠军 2015年", ["黑", "豹", "队", "nfl", "冠", "军", "2015", "年"]),
        ("zh", "《北京》，“a b”。", ["北", "京", "a", "b"]),
        ("zh", "北\u3000京3.5米", ["北", "京", "35", "米"]),
        (
            "zh",
            "二〇一五",
            ["二", "〇", "一", "五"],
        ),  # 〇 is not a Chinese character in the rule, but it is a separate word here
        (
            "zh",
            "〇〇七 の\u9fa5\u9fa6\u3400x",
            ["〇〇", "七", "の", "\u9fa5", "\u9fa6\u3400x"],
        ),  # the range ends at U+9FA5
        ("zh", "the 一", ["the", "一"]),
    ],
)
def test_mlqa_tokens_equal_hand_computed_values(language: str, text: str, tokens: list[str]) -> None:
    assert mlqa_tokens(text, language) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The U.S. a-b 'an'", ["us", "ab"]),
        ("«Das» – “x”", ["«das»", "–", "“x”"]),  # only ASCII punctuation is removed
        ("《北京》 大学。", ["《北京》", "大学。"]),
        ("الكتاب la casa", ["الكتاب", "la", "casa"]),
        ("x\u3000y\u00a0z", ["x", "y", "z"]),
    ],
)
def test_squad_tokens_equal_hand_computed_values(text: str, tokens: list[str]) -> None:
    assert squad_tokens(text) == tokens


def test_f1_equals_hand_computed_values() -> None:
    # Multisets: "a a b" and "a b b c" have two tokens in common; precision 2/3, recall 2/4.
    assert token_f1(["a", "a", "b"], ["a", "b", "b", "c"]) == pytest.approx(4 / 7)
    assert token_f1(["a"], ["b"]) == token_f1([], ["b"]) == token_f1(["a"], []) == 0
    # Both sides are empty: an exact match without a common token, in both official scripts.
    assert (token_f1([], []), exact_match([], [])) == (0, True)
    assert exact_match(["a", "b"], ["b", "a"]) is False


def question(id_: str, *answers: str) -> QaExample:
    return QaExample(id_, "", "", tuple((answer, -1) for answer in answers), "")


def test_scores_equal_hand_computed_values() -> None:
    gold = [question("1", "the big cat", "cats"), question("2", "dog"), question("3", "x"), question("4", "The", "b")]
    predictions = {"1": "A Big cat!", "2": "the dog house", "4": "the", "5": "unasked"}
    # 1: EM 1, F1 1 (the first answer). 2: precision 1/2, recall 1: F1 2/3. 3: missing. 4: EM 1, F1 0.
    scores = score_answers(gold, predictions, "en")
    assert scores == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 4), "n": 4, "missing": 1}
    # In German "the" and "a" are words: 1 has 2 of 3 in common, 2 has precision 1/3, 4 matches and has its token.
    scores = score_answers(gold, predictions, "de")
    assert scores["exact_match"] == 25.0
    assert scores["f1"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 4)
    assert score_answers(gold, predictions) == score_answers(gold, predictions, "en")


def test_chinese_is_segmented_by_character() -> None:
    gold, predictions = [question("1", "北京大学")], {"1": "北京 大 学校"}
    # 北京大学 against 北京大学校: precision 4/5, recall 1.
    assert score_answers(gold, predictions, "zh")["f1"] == pytest.approx(100 * 8 / 9)
    assert score_answers(gold, {"1": "北 京 大 学"}, "zh")["exact_match"] == 100.0
    assert score_answers(gold, predictions, "hi") == {"exact_match": 0.0, "f1": 0.0, "n": 1, "missing": 0}


def test_any_code_of_a_language_is_accepted() -> None:
    gold = [question("1", "北京")]
    for code in ("zh", "zh_Hans", "zho", "ZH"):
        assert score_answers(gold, {"1": "京"}, code)["f1"] == pytest.approx(200 / 3)
    message = "language: found 'fr', expected one of MLQA's languages: en, es, de, vi, ar, hi, zh"
    with pytest.raises(UserError, match=message):
        score_answers(gold, {}, "fr")
    with pytest.raises(UserError, match="no questions"):
        score_answers([], {}, "zh")


TEXTS = st.text(st.sampled_from("aAnThe の北京ß١ال ,.'-—\u00a0\u3000của1x。_$"), max_size=12)
ANSWERS = st.dictionaries(st.integers(0, 9).map(str), st.tuples(st.lists(TEXTS, min_size=1, max_size=3), TEXTS))


@settings(deadline=None)
@given(ANSWERS.filter(bool), st.sampled_from([*LANGUAGES, None]), st.randoms())
def test_scores_are_bounded_and_invariant(
    answers: dict[str, tuple[list[str], str]], language: str | None, order: random.Random
) -> None:
    gold = [question(id_, *golds) for id_, (golds, _) in answers.items()]
    predictions = {id_: text for id_, (_, text) in answers.items()}
    scores = score_answers(gold, predictions, language)
    assert 0 <= scores["exact_match"] <= 100
    assert 0 <= scores["f1"] <= 100

    shuffled = [question(e.id, *order.sample([t for t, _ in e.answers], len(e.answers))) for e in gold]
    order.shuffle(shuffled)
    again = score_answers(shuffled, dict(reversed(predictions.items())), language)
    assert again == {**scores, "f1": pytest.approx(scores["f1"])}

    # Upper case and punctuation at the ends do not matter (ß is excluded, because its upper case differs).
    loud = {id_: f"!{text.replace('ß', '').upper()}." for id_, text in predictions.items()}
    plain = {id_: text.replace("ß", "") for id_, text in predictions.items()}
    assert score_answers(gold, loud, language) == score_answers(gold, plain, language)

    identity = score_answers(gold, {e.id: e.answers[-1][0] for e in gold}, language)
    tokens = [
        squad_tokens(e.answers[-1][0]) if language is None else mlqa_tokens(e.answers[-1][0], language) for e in gold
    ]
    assert identity["exact_match"] == 100
    if all(tokens):
        assert identity["f1"] == 100
    one_more = score_answers([*gold, question("new", "x")], predictions, language)
    assert one_more["exact_match"] == pytest.approx(float(Fraction(len(gold), len(gold) + 1)) * scores["exact_match"])
    assert one_more["missing"] == 1


# Files.


def squad(path: Path, answers: dict[str, list[str]]) -> str:
    questions = [{"id": id_, "answers": [{"text": text} for text in texts]} for id_, texts in answers.items()]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": questions}]}]}), encoding="utf-8")
    return str(path)


def predicted(path: Path, answers: Any) -> str:
    path.write_text(json.dumps(answers), encoding="utf-8")
    return str(path)


@pytest.fixture
def zh(tmp_path: Path) -> tuple[str, str]:
    gold = squad(tmp_path / "gold.json", {"1": ["北京大学"], "2": ["两只猫", "猫"]})
    return gold, predicted(tmp_path / "answers.json", {"1": "北京", "2": "猫。"})


def test_a_file_is_scored(zh: tuple[str, str]) -> None:
    gold, predictions = zh
    result = evaluate("qa", gold=[gold], predictions=[predictions], language="zh")
    f1 = pytest.approx(100 * (2 / 3 + 1) / 2)
    scores = {"exact_match": 50.0, "f1": f1, "n": 2, "missing": 0}
    assert result == {"metric": "mlqa", "exact_match": 50.0, "f1": f1, "languages": {"zh": scores}}
    assert evaluate("qa", gold=[f"zh:{gold}"], predictions=[predictions]) == result
    squad_result = evaluate("qa", gold=[gold], predictions=[predictions], metric="squad")
    assert (squad_result["exact_match"], squad_result["f1"], list(squad_result["languages"])) == (0.0, 0.0, ["und"])
    assert format_table(result).splitlines()[1:] == [
        "language   exact_match            f1             n",
        "zh                50.0          83.3             2",
    ]


def test_missing_and_unknown_questions_are_listed(zh: tuple[str, str], tmp_path: Path, caplog) -> None:
    gold, _ = zh
    answers = predicted(tmp_path / "some.json", {"2": "猫", **{f"u{i:02d}": "" for i in range(22)}})
    result = evaluate("qa", gold=[gold], predictions=[answers], language="zh")
    assert result["languages"]["zh"] == {"exact_match": 50.0, "f1": 50.0, "n": 2, "missing": 1}
    lines = caplog.messages
    assert lines[0] == f"{gold}: 1 questions have no prediction and score 0: 1"
    assert lines[1].startswith(f"{gold}: 22 predictions have no question and are ignored: u00, u01, ")
    assert lines[1].endswith("u19 … and 2 more")


def test_languages_are_scored_with_their_mean(zh: tuple[str, str], tmp_path: Path) -> None:
    gold, predictions = zh
    german = squad(tmp_path / "de.json", {"1": ["Der Hund"], "3": ["Katze"], "4": ["x"]})
    answers = predicted(tmp_path / "de.txt", {"1": "hund", "3": "Katze", "4": "y"})
    result = evaluate("qa", gold=[f"zh:{gold}", f"de:{german}"], predictions=[f"de:{answers}", f"zh:{predictions}"])
    assert list(result["languages"]) == ["zh", "de"]
    # All languages have equal weight, independent of their numbers of questions.
    assert result["exact_match"] == pytest.approx((50 + 200 / 3) / 2)
    assert "gxlt" not in result
    assert format_table(result).splitlines()[-1].split() == ["mean", "58.3", "75.0", "5"]


def test_xlt_and_gxlt_are_scored_by_context_and_question_language(tmp_path: Path) -> None:
    right = {"zh-zh": 4, "zh-en": 3, "en-en": 2, "en-zh": 1}
    gold, answers = [], []
    (tmp_path / "p").mkdir()
    for name, n in right.items():
        context, asked = name.split("-")
        file = f"test-context-{context}-question-{asked}.json"
        gold.append(squad(tmp_path / file, {str(i): ["the 猫 狗"] for i in range(4)}))
        # Equal only if the article is removed, which depends on the language of the answer, not of the question.
        text = "the猫狗" if context == "zh" else "猫 狗"
        answers.append(predicted(tmp_path / "p" / file, {str(i): text if i < n else "" for i in range(4)}))
    result = evaluate("qa", gold=gold, predictions=answers)
    assert {key: s["exact_match"] for key, s in result["languages"].items()} == {
        "zh": 100.0,
        "zh-en": 75.0,
        "en": 50.0,
        "en-zh": 25.0,
    }
    assert (result["xlt"]["exact_match"], result["gxlt"]["exact_match"]) == (75.0, 50.0)
    assert result["exact_match"] == 62.5
    lines = [line.split() for line in format_table(result).splitlines()]
    assert lines[1:4] == [
        ["exact_match,", "context\\question", "en", "zh"],
        ["en", "50.0", "25.0"],
        ["zh", "75.0", "100.0"],
    ]
    assert lines[7:10] == [["n,", "context\\question", "en", "zh"], ["en", "4", "4"], ["zh", "4", "4"]]
    assert lines[-1] == ["G-XLT", "(two", "languages):", "exact_match", "50.0,", "f1", "50.0"]

    named = [f"zh-en:{gold[1]}"]
    alone = evaluate("qa", gold=named, predictions=[answers[1]])
    assert alone["languages"] == {"zh-en": result["languages"]["zh-en"]}
    assert alone["xlt"] is None
    assert format_table(alone).splitlines()[2].split() == ["zh", "75.0"]
    by_name = evaluate("qa", gold=[gold[1]], predictions=[answers[1]])
    assert by_name == alone


def test_invalid_arguments_are_an_error(zh: tuple[str, str], tmp_path: Path) -> None:
    gold, predictions = zh
    twice = squad(tmp_path / "none.json", {"1": []})
    for options, message in (
        ({"gold": [gold]}, r"expected LANG:FILE.*or --language LANG for a single file"),
        ({"gold": [gold], "language": "fr"}, "language: found 'fr', expected one of MLQA's languages"),
        ({"gold": [gold], "language": "qqqqq"}, "--language: found qqqqq, expected a BCP-47 code"),
        ({"gold": [f"zh:{gold}", f"en:{gold}"], "language": "zh"}, "for a single --gold FILE"),
        ({"gold": [f"zh:{gold}", f"zh:{gold}"]}, "found zh twice"),
        ({"gold": [f"zh-en-de:{gold}"]}, "expected LANG:FILE"),
        (
            {"gold": [f"zh:{gold}"], "predictions": [f"en:{predictions}"]},
            "found files for en, expected one for each of zh",
        ),
        ({"gold": [gold], "language": "zh", "metric": "rouge"}, "metric: found 'rouge', expected one of mlqa, squad"),
        (
            {"gold": [gold], "language": "zh", "predictions": None},
            "predictions and model: found neither, expected one of them",
        ),
        (
            {"gold": [gold], "language": "zh", "model": "m"},
            r"predictions and model: found both \(.* and m\), expected one of them",
        ),
        ({"gold": [twice], "language": "zh"}, "none.json: question 1: no answer"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate("qa", **{"predictions": [predictions], **options})


@pytest.mark.parametrize(
    ("content", "message"), [([1], "expected a JSON object"), ({"7": None}, "question 7: found None")]
)
def test_an_invalid_predictions_file_is_an_error(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_predictions(predicted(tmp_path / "p.json", content))


@pytest.mark.skipif("PPA_FAST_TEST_DATA" not in os.environ, reason="PPA_FAST_TEST_DATA is not set")
@pytest.mark.parametrize("metric", ["mlqa", "squad"])
def test_gold_answers_of_xquad_score_100(metric: str, tmp_path: Path) -> None:
    gold, predictions = [], []
    for path in sorted((Path(os.environ["PPA_FAST_TEST_DATA"]) / "qa").glob("xquad.*.json")):
        code = path.name.split(".")[1]
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        asked = [q for article in data for paragraph in article["paragraphs"] for q in paragraph["qas"]]
        answers = {q["id"]: q["answers"][-1]["text"] for q in asked}
        gold.append(f"{code}:{path}")
        predictions.append(f"{code}:{predicted(tmp_path / path.name, answers)}")
    result = evaluate("qa", gold=gold, predictions=predictions, metric=metric)
    assert sorted(result["languages"]) == ["ar", "de", "en", "es", "hi", "vi", "zh"]
    for code, scores in result["languages"].items():
        assert scores == {"exact_match": 100.0, "f1": 100.0, "n": 1190, "missing": 0}, code
