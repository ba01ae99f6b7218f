"""Means over seeds, differences over pairs of seeds, and chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppa_fast.data.examples import read_classification, read_gold, read_nli, rows_of
from ppa_fast.evaluation.question_answering import score_answers
from ppa_fast.finetune.table import spread

ABOVE_CHANCE = 3.0  # standard deviations


def t_test(t: float, freedom: int) -> float:
    """The two-sided p of Student's t with ``freedom`` degrees: 1 − A(t|ν), Abramowitz and Stegun (1964), 26.7.3–4."""
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
    """Differences of the same seeds: ``spread`` and ``p``, of a two-sided paired t-test; None for a single pair."""
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
    """The least two-sided p that the exact sign-flip test over ``n`` pairs can give: 2 of its 2^n outcomes."""
    return 2 / 2**n


def chance(task: str, gold: str | Path) -> tuple[float, int]:
    """The score, 0 … 1, of who has learned nothing, on a test file, and its number of examples.

    Classes: accuracy of always naming the most frequent one. Question answering: F1 of always giving the whole context.
    """
    if task == "qa":
        questions, _ = read_gold(gold)
        whole = {question.id: question.context for question in questions}
        return score_answers(questions, whole)["f1"] / 100, len(questions)
    if task == "nli":  # XNLI's file has all languages
        labels = Counter(example.label for example in rows_of(read_nli(gold)[0], "en"))
    else:
        labels = Counter(example.label for example in read_classification(gold)[0])
    return max(labels.values()) / labels.total(), labels.total()


def needed(share: float, n: int) -> float:
    """What is above chance: ``share`` and three binomial standard deviations of ``n`` examples."""
    return share + ABOVE_CHANCE * math.sqrt(share * (1 - share) / n)
