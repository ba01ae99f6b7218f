"""Paired differences over seeds, significance tests, and chance levels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppa_fast.tasks.classification import read_classification
from ppa_fast.tasks.nli import read_nli
from ppa_fast.tasks.qa_metrics import score_answers
from ppa_fast.tasks.question_answering import read_gold
from ppa_fast.tasks.reading import rows_of
from ppa_fast.tasks.tables import spread
from ppa_fast.tasks.tag_files import read_tagged
from ppa_fast.tasks.tag_metrics import has_entities, score_tags

ABOVE_CHANCE = 3.0  # standard deviations


def t_test(t: float, freedom: int) -> float:
    """The two-sided p of Student's t with ``freedom`` degrees of freedom: 1 − A(t|ν).

    Source: Abramowitz and Stegun (1964), 26.7.3–4.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (k - 1) / k * cosine * cosine
    if odd:
        return max(0.0, 1 - 2 / math.pi * (angle + math.sin(angle) * total))
    return max(0.0, 1 - math.sin(angle) * total)


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """``spread`` of the differences by seed, and ``p`` of a two-sided paired t-test (None for a single pair)."""
    differences = [value - base for value, base in zip(values, baseline, strict=True)]
    result = spread(differences)
    mean, sd, n = result["mean"], result["sd"], len(differences)
    if sd is None:
        p = None
    elif sd == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = t_test(mean / (sd / math.sqrt(n)), n - 1)
    return {**result, "p": p}


def least_sign_flip_p(n: int) -> float:
    """The smallest two-sided p of the exact sign-flip test over ``n`` pairs: 2 of its 2^n outcomes."""
    return 2 / 2**n


def chance(task: str, gold: str | Path) -> tuple[float, int]:
    """The chance level (0 to 1) of a test file, and its number of examples.

    For classification, the accuracy of predicting the most frequent class. For question answering, the F1 of answering
    with the complete context. For tagging, the score of giving every word the most frequent tag, which is 0 for
    entities.
    """
    if task == "qa":
        questions, _ = read_gold(gold)
        contexts = {question.id: question.context for question in questions}
        return score_answers(questions, contexts)["f1"] / 100, len(questions)
    if task == "tagging":
        tags = [sentence.tags for sentence in read_tagged(gold)[0]]
        counts = Counter(tag for sentence in tags for tag in sentence)
        guesses = [[max(counts, key=counts.__getitem__)] * len(sentence) for sentence in tags]
        scores = score_tags(tags, guesses, has_entities(counts))
        return scores["f1" if "f1" in scores else "accuracy"], len(tags)
    if task == "nli":  # XNLI's file contains all languages
        labels = Counter(example.label for example in rows_of(read_nli(gold)[0], "en"))
    else:
        labels = Counter(example.label for example in read_classification(gold)[0])
    return max(labels.values()) / labels.total(), labels.total()


def needed(share: float, n: int) -> float:
    """The limit for a score above chance: ``share`` plus three binomial standard deviations for ``n`` examples."""
    return share + ABOVE_CHANCE * math.sqrt(share * (1 - share) / n)
