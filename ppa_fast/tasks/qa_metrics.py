"""Exact match and token F1 of answers, by the official definitions of SQuAD 1.1 and MLQA.

SQuAD 1.1 (Rajpurkar et al., 2016; evaluate-v1.1, also used for XQuAD in every language) and MLQA (Lewis et al., 2020;
mlqa_evaluation_v1) normalize answers in the same order: lower-case, remove punctuation, replace articles by a space,
split into tokens. They differ in punctuation, in articles, and in MLQA's Chinese tokens. Scores are × 100.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ppa_fast.data.reading.languages import base_language
from ppa_fast.errors import UserError

if TYPE_CHECKING:
    from ppa_fast.tasks.question_answering import QaExample

METRICS = ("exact_match", "f1")

_SQUAD_ARTICLES = r"\b(?:a|an|the)\b"
_MLQA_ARTICLES = {
    "en": _SQUAD_ARTICLES,
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "ar": "ال",  # official rule: also inside a word
    "hi": None,
    "zh": None,
}
_CHINESE = re.compile("[\u4e00-\u9fa5]")  # MLQA's range; excludes extensions and the block's last 90


@cache
def _is_punctuation(character: str) -> bool:
    """MLQA's punctuation: Unicode categories P* and ASCII punctuation, including nine characters that Unicode calls
    symbols (``$+<=>^`|~``)."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _chinese_tokens(text: str) -> list[str]:
    """Splits text without punctuation: each Chinese character is a token, other text is split at white space."""
    return _CHINESE.sub(lambda match: f" {match[0]} ", text).split()


def squad_tokens(text: str) -> list[str]:
    """The normalized tokens of an answer as in SQuAD 1.1's script: without ASCII punctuation and English articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(_SQUAD_ARTICLES, " ", text).split()


def mlqa_tokens(text: str, language: str) -> list[str]:
    """The normalized tokens of an answer as in MLQA's script. ``language``: the answer's, one of MLQA's seven.

    Splits at Python's white space, including U+00A0 and U+3000. As in the official script, combining marks are not
    letters: articles match next to them, and decomposed Vietnamese articles do not match.
    """
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    if articles := _MLQA_ARTICLES[language]:
        text = re.sub(articles, " ", text)
    return _chinese_tokens(text) if language == "zh" else text.split()


def exact_match(prediction: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether the normalized tokens are equal. Answers of only articles and punctuation are equal to each other."""
    return list(prediction) == list(gold)


def token_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over token multisets; 0 without common tokens (also if both empty)."""
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_answers(
    gold: Sequence[QaExample], predictions: Mapping[str, str], language: str | None = None
) -> dict[str, Any]:
    """Exact match and F1 of answers by question id: maximum over gold answers, mean over questions.

    ``language``: the language of the answers for MLQA's definition, None for SQuAD 1.1's. A question without a
    prediction scores 0. Predictions for other ids are ignored.

    Returns ``{"exact_match": 0 … 100, "f1": 0 … 100, "n": questions, "missing": questions without a prediction}``.
    Raises UserError for an empty ``gold``, and for a language that MLQA's script does not support.
    """
    if not gold:
        raise UserError("gold: found no questions, expected at least one")
    code = None if language is None else base_language(language)
    if code is not None and code not in _MLQA_ARTICLES:
        raise UserError(
            f"language: found {language!r}, expected one of MLQA's languages: {', '.join(_MLQA_ARTICLES)}; "
            "use metric squad for other languages"
        )
    matches = f1 = 0.0
    for example in gold:
        if example.id not in predictions:
            continue
        texts = [predictions[example.id], *(text for text, _ in example.answers)]
        prediction, *answers = (squad_tokens(text) if code is None else mlqa_tokens(text, code) for text in texts)
        matches += max(exact_match(prediction, answer) for answer in answers)
        f1 += max(token_f1(prediction, answer) for answer in answers)
    missing = sum(example.id not in predictions for example in gold)
    return {
        "exact_match": 100 * matches / len(gold),
        "f1": 100 * f1 / len(gold),
        "n": len(gold),
        "missing": missing,
    }
