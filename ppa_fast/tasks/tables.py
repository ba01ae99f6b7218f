"""Means of scores over languages and seeds, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

Scores = dict[str, dict[str, Any]]  # by language and metric


def means(scores: Scores, metrics: Sequence[str]) -> dict[str, float]:
    """The unweighted mean over languages of each metric."""
    return {metric: fmean(score[metric] for score in scores.values()) for metric in metrics}


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds. The standard deviation is None for one seed."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "seeds": values}


def summarise(tests: Sequence[Scores]) -> dict[str, Any]:
    """Summarizes the scores of several seeds.

    Returns ``{"languages": {"de": {metric: {"mean", "sd", "seeds": [values]}}}, "mean": {metric: {…}}}``. The top-level
    "mean" averages over languages (unweighted) first, then over seeds. ``sd`` divides by seeds - 1.
    """
    if not tests[0]:
        return {"languages": {}, "mean": {}}
    metrics = list(next(iter(tests[0].values())))
    of_seeds = [means(test, metrics) for test in tests]
    return {
        "languages": {
            language: {metric: spread([test[language][metric] for test in tests]) for metric in metrics}
            for language in tests[0]
        },
        "mean": {metric: spread([mean[metric] for mean in of_seeds]) for metric in metrics},
    }


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 12) -> str:
    """A table for a terminal: the first column left-aligned, the others right-aligned in ``width`` characters."""
    first = max(len(row[0]) for row in (head, *rows))
    lines = ("  ".join([name.ljust(first), *(cell.rjust(width) for cell in cells)]) for name, *cells in (head, *rows))
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column left-aligned, the others right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_scores(result: dict[str, Any], metrics: Sequence[str], scale: float, caption: str) -> str:
    """A text table: a row per language of ``result["languages"]`` with its metrics times ``scale`` and its n.

    With several languages, adds the means ``result[metric]``.
    """
    scores = dict(result["languages"])
    if len(scores) > 1:
        scores["mean"] = {**result, "n": sum(score["n"] for score in scores.values())}
    rows = [
        [language, *(f"{scale * score[metric]:.1f}" for metric in metrics), f"{score['n']:,}"]
        for language, score in scores.items()
    ]
    return f"{caption}\n{text_table(['language', *metrics, 'n'], rows)}"


def format_seeds(result: dict[str, Any], scale: float) -> str:
    """A Markdown table of ``summarise``'s result: a row per language with mean ± sd over seeds, times ``scale``.

    ``result["n"]``: the number of scored examples by language.
    """
    if not result["languages"]:
        return "No test sets were given."

    def cell(score: dict[str, Any]) -> str:
        sd = "" if score["sd"] is None else f" ± {scale * score['sd']:.1f}"
        return f"{scale * score['mean']:.1f}{sd}"

    metrics = list(result["mean"])
    rows, sizes = dict(result["languages"]), dict(result["n"])
    if len(rows) > 1:
        rows["mean"], sizes["mean"] = result["mean"], sum(sizes.values())
    return markdown_table(
        ["language", *metrics, "n"],
        [[name, *(cell(scores[metric]) for metric in metrics), f"{sizes[name]:,}"] for name, scores in rows.items()],
    )
