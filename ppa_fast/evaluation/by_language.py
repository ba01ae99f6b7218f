"""Scores of several languages: their files, their means, their table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ppa_fast.data.examples import parse_files
from ppa_fast.errors import UserError

NO_LANGUAGE = "und"  # BCP-47's code of an undetermined language


def only_file(specs: Sequence[str]) -> Path | None:
    """The file of a single argument without a language in front of it, such as ``test.tsv``; else None."""
    if len(specs) == 1 and (":" not in specs[0] or Path(specs[0]).exists()):
        return Path(specs[0])
    return None


def named_files(specs: Sequence[str], flag: str, name: str) -> dict[str, Path]:
    """Files by language of ``en:FILE de:FILE``, or ``{name: FILE}`` of a single ``FILE``; see ``parse_files``."""
    path = only_file(specs)
    return {name: path} if path else parse_files(specs, flag)


def check_same(gold: dict[str, Path], predictions: dict[str, Path]) -> None:
    """Raises UserError where predictions are not given for exactly the gold files' languages."""
    if gold.keys() != predictions.keys():
        raise UserError(
            f"--predictions: found files for {', '.join(predictions)}, expected one for each of {', '.join(gold)}"
        )


def means(scores: dict[str, dict[str, Any]], metrics: Sequence[str]) -> dict[str, float]:
    """The mean over languages of each metric, every language alike."""
    return {metric: fmean(score[metric] for score in scores.values()) for metric in metrics}


def format_scores(result: dict[str, Any], metrics: Sequence[str], scale: float, caption: str) -> str:
    """A text table: a line for each of ``result["languages"]`` with its metrics, times ``scale``, and its n; the mean.

    The means are the result's own ``result[metric]``; they are left out where there is one language.
    """
    lines = {language: [*(scale * s[m] for m in metrics), s["n"]] for language, s in result["languages"].items()}
    if len(lines) > 1:
        lines["mean"] = [*(scale * result[metric] for metric in metrics), sum(row[-1] for row in lines.values())]
    width = max(map(len, ["language", *lines]))
    table = [caption, "  ".join(["language".ljust(width), *(name.rjust(12) for name in [*metrics, "n"])])]
    for language, (*values, n) in lines.items():
        table.append("  ".join([language.ljust(width), *(f"{v:.1f}".rjust(12) for v in values), f"{n:,}".rjust(12)]))
    return "\n".join(table)
