"""Extractive question answering: exact match and token F1 by the official definitions of SQuAD 1.1 and MLQA.

SQuAD 1.1 (Rajpurkar et al., 2016; its evaluate-v1.1 also scores XQuAD, in every language) and MLQA (Lewis et al., 2020;
mlqa_evaluation_v1) normalise answers in the same order: lower-case, remove punctuation, replace articles by a space,
split into tokens. They differ in what is punctuation, in the articles, and in MLQA's Chinese tokens. Scores are × 100.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ppa_fast.data.examples import LISTED, QaExample, load_json, read_gold
from ppa_fast.data.languages import base_language, is_code
from ppa_fast.errors import UserError
from ppa_fast.evaluation.by_language import NO_LANGUAGE, check_same, format_scores, means, only_file
from ppa_fast.progress import note

METRICS = ("exact_match", "f1")

_SQUAD_ARTICLES = r"\b(?:a|an|the)\b"
_MLQA_ARTICLES = {
    "en": _SQUAD_ARTICLES,
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "ar": "ال",  # the official rule: wherever the letters stand, inside a word too
    "hi": None,
    "zh": None,
}
_CHINESE = re.compile("[\u4e00-\u9fa5]")  # MLQA's range: neither the extensions nor the last 90 of the block
_MLQA_NAME = re.compile(r"context-(\w+)-question-(\w+)\.json(?:\.gz)?$")


@cache
def _is_punctuation(character: str) -> bool:
    """MLQA's punctuation: Unicode's categories P* and ASCII's, of which nine (``$+<=>^`|~``) are symbols to Unicode."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _chinese_tokens(text: str) -> list[str]:
    """Each Chinese character is a token; what stands between is split at white space (punctuation is gone by now)."""
    return _CHINESE.sub(lambda match: f" {match[0]} ", text).split()


def squad_tokens(text: str) -> list[str]:
    """The normalised tokens of an answer by SQuAD 1.1's script: ASCII punctuation, English articles, white space."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(_SQUAD_ARTICLES, " ", text).split()


def mlqa_tokens(text: str, language: str) -> list[str]:
    """The normalised tokens of an answer by MLQA's script; ``language``, the answer's, is one of its seven.

    White space is Python's: U+00A0 and U+3000 split too. Combining marks are not letters, so that articles match next
    to them, and a decomposed Vietnamese article does not match at all: that is the official behaviour.
    """
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    if articles := _MLQA_ARTICLES[language]:
        text = re.sub(articles, " ", text)
    return _chinese_tokens(text) if language == "zh" else text.split()


def exact_match(prediction: Sequence[str], gold: Sequence[str]) -> bool:
    """Are the normalised tokens the same? Two answers of nothing but articles and punctuation are."""
    return list(prediction) == list(gold)


def token_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of tokens, as multisets; 0 without a common token, both empty too."""
    common = sum((Counter(prediction) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def score_answers(
    gold: Sequence[QaExample], predictions: Mapping[str, str], language: str | None = None
) -> dict[str, Any]:
    """Exact match and F1 of answers by question id: the maximum over gold answers, the mean over questions.

    ``language`` of the answers selects MLQA's definition; None is SQuAD 1.1's. A question without a prediction counts
    0; predictions for other ids count nothing.

    Returns ``{"exact_match": 0 … 100, "f1": 0 … 100, "n": questions, "missing": those without a prediction}``.
    Raises UserError for no questions, and for a language that MLQA's script does not know.
    """
    if not gold:
        raise UserError("gold: found no questions, expected at least one")
    code = None if language is None else base_language(language)
    if code is not None and code not in _MLQA_ARTICLES:
        raise UserError(
            f"language: MLQA defines no scores for {language!r}, expected one of {', '.join(_MLQA_ARTICLES)}; "
            "metric squad scores every language"
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


def read_predictions(path: str | Path) -> dict[str, str]:
    """Answers by question id, from JSON ``{"id": "answer"}``; raises UserError where the file has another form."""
    predictions = load_json(path)
    if not isinstance(predictions, dict):
        raise UserError(
            f'{path}: found {type(predictions).__name__}, expected a JSON object {{"question id": "answer"}}'
        )
    for id_, answer in predictions.items():
        if not isinstance(answer, str):
            raise UserError(f"{path}: question {id_}: found {answer!r}, expected a text")
    return predictions


def _named_files(specs: Sequence[str], flag: str, name: str | None) -> dict[str, Path]:
    """Files by "language of the context" or "language of the context-language of the question" (G-XLT).

    A single file without a language is that of ``name``, if there is one; else its own name must say it as MLQA's do.
    """
    path = only_file(specs)
    if path and name:
        return {name: path}
    files: dict[str, Path] = {}
    for spec in specs:
        key, colon, file = spec.partition(":")
        if not colon:
            key, file = "-".join(dict.fromkeys(match.groups())) if (match := _MLQA_NAME.search(spec)) else "", spec
        codes = key.split("-")
        if len(codes) > 2 or not all(map(is_code, codes)):
            hint = "; or --language LANG for a single file" if flag == "--gold" else ""
            raise UserError(
                f"{flag} {spec}: expected LANG:FILE, LANG-LANG:FILE (context and question) or a file with MLQA's name "
                f"such as test-context-zh-question-en.json{hint}"
            )
        if key in files:
            raise UserError(f"{flag} {spec}: {key} is given twice; expected each once")
        files[key] = Path(file)
    return files


def _warn(path: Path, what: str, ids: Sequence[str]) -> None:
    if ids:
        more = f" … and {len(ids) - LISTED:,} more" if len(ids) > LISTED else ""
        note(f"{path}: {len(ids):,} {what}: {', '.join(ids[:LISTED])}{more}")


def _answers(
    gold: dict[str, Path], examples: dict[str, list[QaExample]], predictions: Sequence[str] | None, model: str | None
) -> dict[str, dict[str, str]]:
    """Predictions by file and question id, read from files or made by a model."""
    if predictions:
        files = _named_files(predictions, "--predictions", next(iter(gold)) if len(gold) == 1 else None)
        check_same(gold, files)
        return {key: read_predictions(files[key]) for key in gold}
    from ppa_fast.evaluation.predict import answer_questions, load_reader

    reader, tokenizer = load_reader(str(model))
    return {key: answer_questions(reader, tokenizer, examples[key], progress=f"{key}: answering") for key in gold}


def evaluate_qa(
    gold: Sequence[str],
    predictions: Sequence[str] | None = None,
    model: str | None = None,
    language: str | None = None,
    metric: str = "mlqa",
) -> dict[str, Any]:
    """Exact match and F1 of answers in files, or of a fine-tuned model's answers.

    Args:
        gold: SQuAD 1.1 files: one, or one for each language (``en:FILE``, ``zh-en:FILE`` for a Chinese context with
            English questions; MLQA's file names say it themselves).
        predictions: JSON files ``{id: answer}``, named in the same way.
        model: instead of predictions, the name or folder of a model with a head for question answering.
        language: that of a single gold file's answers. MLQA's metric needs it there, unless the file has MLQA's name.
        metric: "mlqa" or "squad" (SQuAD 1.1's normalisation in every language, as XQuAD is scored).

    Returns:
        ``{"metric": …, "exact_match": …, "f1": …, "languages": {"zh": {"exact_match": …, "f1": …, "n": questions,
        "missing": without a prediction}}}``, scores × 100; the two at the top are the means over files. Where question
        and context languages differ in some file, ``xlt`` and ``gxlt`` are the means over the files with one language
        and with two.

    Raises UserError for unusable files and requests. Questions without a prediction, and predictions without a
    question, are listed on stderr.
    """
    if metric not in ("mlqa", "squad"):
        raise UserError(f"metric: found {metric!r}, expected mlqa or squad")
    if bool(predictions) == bool(model):
        raise UserError("evaluate qa: expected either predictions or a model")
    if language is not None and (only_file(gold) is None or not is_code(language)):
        raise UserError(f"--language {language}: expected a BCP-47 code, for a single --gold FILE")
    mlqa_name = len(gold) == 1 and _MLQA_NAME.search(gold[0])
    files = _named_files(gold, "--gold", language or (None if metric == "mlqa" or mlqa_name else NO_LANGUAGE))
    examples = {}
    for key, path in files.items():
        examples[key], rejected = read_gold(path, asked=model is not None)
        if rejected:
            raise UserError(f"{rejected[0]} ({len(rejected):,} such; an evaluation set must have no bad question)")

    scores = {}
    for key, answers in _answers(files, examples, predictions, model).items():
        ids = dict.fromkeys(example.id for example in examples[key])
        _warn(files[key], "questions without a prediction score 0", [id_ for id_ in ids if id_ not in answers])
        _warn(files[key], "predictions for no question of this file", [id_ for id_ in answers if id_ not in ids])
        scores[key] = score_answers(examples[key], answers, key.split("-")[0] if metric == "mlqa" else None)
    result: dict[str, Any] = {"metric": metric, **means(scores, METRICS), "languages": scores}
    if crossed := {key: score for key, score in scores.items() if "-" in key}:
        straight = {key: score for key, score in scores.items() if key not in crossed}
        result["xlt"] = means(straight, METRICS) if straight else None
        result["gxlt"] = means(crossed, METRICS)
    return {**result, "model": model} if model else result


def _matrix(result: dict[str, Any], metric: str) -> str:
    """MLQA's G-XLT table of one metric: a line for each context's language, a column for each question's."""
    cells = {(key.split("-")[0], key.split("-")[-1]): s[metric] for key, s in result["languages"].items()}
    questions = sorted({question for _, question in cells})
    lines = ["  ".join([f"{metric}, context\\question".ljust(29), *(code.rjust(7) for code in questions)])]
    for context in sorted({context for context, _ in cells}):
        row = [f"{cells[context, q]:.1f}" if (context, q) in cells else "–" for q in questions]
        lines.append("  ".join([context.ljust(29), *(cell.rjust(7) for cell in row)]))
    return "\n".join(lines)


def format_table(result: dict[str, Any]) -> str:
    """A text table of ``evaluate_qa``'s result: a line for each language; G-XLT's matrices where languages differ."""
    name = {"mlqa": "MLQA's", "squad": "SQuAD 1.1's"}[result["metric"]]
    caption = f"Exact match and token F1 × 100, {name} definition."
    if "gxlt" not in result:
        return format_scores(result, METRICS, 1.0, caption)
    tables = [caption, *(_matrix(result, metric) for metric in METRICS)]
    for name, title in (("xlt", "XLT (one language)"), ("gxlt", "G-XLT (two languages)")):
        if result[name]:
            tables.append(f"{title}: " + ", ".join(f"{metric} {result[name][metric]:.1f}" for metric in METRICS))
    return "\n".join(tables)
