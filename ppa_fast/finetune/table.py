"""Scores of several seeds: their means, their standard deviations, their table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Scores = dict[str, dict[str, float]]  # by language and metric


def language_means(scores: Scores) -> dict[str, float]:
    """The mean over languages of each metric, every language alike."""
    metrics = next(iter(scores.values()))
    return {metric: fmean(score[metric] for score in scores.values()) for metric in metrics}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; None for the latter of one seed."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "seeds": values}


def summarise(tests: Sequence[Scores]) -> dict[str, Any]:
    """The scores of seeds together.

    Returns ``{"languages": {"de": {metric: {"mean", "sd", "seeds": [a value each]}}}, "mean": {metric: {…}}}``; "mean"
    is over languages, every language alike, before it is over seeds. ``sd`` divides by seeds - 1.
    """
    if not tests[0]:
        return {"languages": {}, "mean": {}}
    means = [language_means(test) for test in tests]
    return {
        "languages": {
            language: {metric: spread([test[language][metric] for test in tests]) for metric in means[0]}
            for language in tests[0]
        },
        "mean": {metric: spread([mean[metric] for mean in means]) for metric in means[0]},
    }


def format_table(result: dict[str, Any], scale: float) -> str:
    """A Markdown table of ``summarise``'s result: a line for each language, mean ± sd over seeds, times ``scale``."""
    if not result["languages"]:
        return "No test sets were given."

    def cell(score: dict[str, Any]) -> str:
        sd = "" if score["sd"] is None else f" ± {scale * score['sd']:.1f}"
        return f"{scale * score['mean']:.1f}{sd}"

    metrics = list(result["mean"])
    rows = dict(result["languages"])
    if len(rows) > 1:
        rows["mean"] = result["mean"]
    lines = [f"| language | {' | '.join(metrics)} |", f"|---|{'---:|' * len(metrics)}"]
    lines += [f"| {name} | {' | '.join(cell(scores[metric]) for metric in metrics)} |" for name, scores in rows.items()]
    return "\n".join(lines)
