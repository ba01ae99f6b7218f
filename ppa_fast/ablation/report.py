"""The results of an ablation: results.json and a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ppa_fast.ablation.plan import BASELINE, ENGLISH, ROWS, Evaluation, Plan
from ppa_fast.ablation.stages import evaluated, result_file
from ppa_fast.ablation.statistics import chance, least_sign_flip_p, needed, paired
from ppa_fast.data.reading.languages import is_english
from ppa_fast.tasks.tables import markdown_table, spread

SIGNIFICANT = 0.05
MARK = "*"
NOT_MEASURABLE = "not measurable at this size"
CHANCE = dict.fromkeys(("nli", "classify"), "predicting the most frequent class") | {
    "qa": "answering with the complete context",
    "tagging": "predicting the most frequent tag",
}
FIGURES = {"english": "en", "others": "others"}


@dataclass(frozen=True)
class Runs:
    """The scores of a row in %, by seed and language, for finished seeds."""

    by_seed: dict[int, dict[str, float]]

    def figure(self, name: str) -> dict[int, float]:
        """By seed, the score in English (``name`` "english") or the mean over the other languages ("others")."""
        figures = {}
        for seed, scores in self.by_seed.items():
            values = [score for code, score in scores.items() if (code == ENGLISH) == (name == "english")]
            if values:
                figures[seed] = fmean(values)
        return figures


def read_scores(file: Path, task: str) -> dict[str, float]:
    """The scores in % by language from a stage's result file; for retrieval, from English to the language."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if task == "retrieval":
        scores = {}
        for pair, found in content["pairs"].items():
            from_english = is_english(pair.split("-")[0])
            scores[_foreign(pair)] = 100 * found["a_to_b" if from_english else "b_to_a"]
        return scores
    scale = 1 if task == "qa" else 100
    return {code: scale * found.get("f1", found.get("accuracy")) for code, found in content["test"].items()}


def read_metric(file: Path, task: str) -> str:
    """The metric of ``read_scores``."""
    if task == "retrieval":
        return "accuracy en→xx"
    scores = json.loads(file.read_text(encoding="utf-8"))["test"]
    return "F1" if "f1" in next(iter(scores.values())) else "accuracy"


def read_sizes(file: Path, task: str) -> dict[str, int]:
    """The number of scored rows by language from a stage's result file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if task != "retrieval":
        return dict(content.get("n", {}))  # older versions did not write n
    return {_foreign(pair): found["n"] for pair, found in content["pairs"].items()}


def _foreign(pair: str) -> str:
    """The language of an evaluated pair that is not English."""
    a, b = pair.split("-")
    return b if is_english(a) else a


def seeds_of(out: Path) -> list[int]:
    """The seeds that have a folder in the ablation's output."""
    return sorted(int(path.name.removeprefix("seed-")) for path in out.glob("seed-*"))


def _read_runs(evaluation: Evaluation, row: str, out: Path) -> Runs:
    files = {seed: result_file(out, seed, row, evaluation) for seed in seeds_of(out)}
    return Runs({seed: read_scores(file, evaluation.task) for seed, file in files.items() if file.is_file()})


def _row(runs: Runs, baseline: Runs | None) -> dict[str, Any]:
    """``spread`` by language and of the two figures, and their ``difference`` from the baseline, paired by seed."""
    languages = next(iter(runs.by_seed.values()))
    result: dict[str, Any] = {
        "languages": {code: spread([scores[code] for scores in runs.by_seed.values()]) for code in languages}
    }
    for name in FIGURES:
        values, base = runs.figure(name), baseline.figure(name) if baseline else {}
        if values:
            result[name] = spread([*values.values()])
        if both := [seed for seed in values if seed in base]:
            result[name]["difference"] = paired([values[seed] for seed in both], [base[seed] for seed in both])
    return result


def _measurable(evaluation: Evaluation, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether the best mean English score is above chance. Retrieval is always measurable: its chance is near 0."""
    if evaluation.task == "retrieval":
        return {"measurable": True}
    gold = next(spec for spec in evaluation.test if spec.startswith(f"{ENGLISH}:")).split(":", 1)[1]
    share, n = chance(evaluation.task, gold)
    best = max(row["english"]["mean"] for row in rows.values())
    limit = 100 * needed(share, n)
    return {"measurable": best > limit, "chance": 100 * share, "needed": limit, "best_english": best, "n": n}


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """The results of all finished stages in ``out``, including rows and seeds that are not in the plan.

    ``{"seeds", "evaluations": {name: {"task", "metric", "measurable", "chance", "needed", "best_english", "n", "sizes":
    {code: scored rows}, "rows": {row: {"languages": {code: spread}, "english": spread, "others": spread}}}}}``, scores
    in %. The two figures of every row except the baseline have a ``difference`` (see ``statistics.paired``).
    """
    evaluations: dict[str, Any] = {}
    for evaluation in plan.evaluations:
        runs = {row: _read_runs(evaluation, row, out) for row in ROWS if evaluated(row, evaluation)}
        runs = {row: found for row, found in runs.items() if found.by_seed}
        if not runs:
            continue
        rows = {row: _row(found, runs.get(BASELINE) if row != BASELINE else None) for row, found in runs.items()}
        row, found = next(iter(runs.items()))
        file = result_file(out, next(iter(found.by_seed)), row, evaluation)
        about: dict[str, Any] = {"task": evaluation.task, "metric": read_metric(file, evaluation.task)}
        about |= {**_measurable(evaluation, rows), "sizes": read_sizes(file, evaluation.task)}
        evaluations[evaluation.name] = {**about, "rows": rows}
    return {"seeds": len(seeds_of(out)), "evaluations": evaluations}


def cell(figure: dict[str, Any] | None) -> str:
    """A score with its difference from the baseline, such as ``41.0 ± 1.1 (+28.7*)``."""
    if figure is None:
        return "–"
    text = f"{figure['mean']:.1f}"
    if figure["sd"] is not None:
        text += f" ± {figure['sd']:.1f}"
    if difference := figure.get("difference"):
        mark = MARK if difference["p"] is not None and difference["p"] < SIGNIFICANT else ""
        text += f" ({difference['mean']:+.1f}{mark})"
    return text


def columns_of(evaluations: dict[str, Any]) -> list[tuple[str, str]]:
    """The (evaluation, figure) pairs with values, for measurable evaluations."""
    return [
        (name, figure)
        for name, found in evaluations.items()
        if found["measurable"]
        for figure in FIGURES
        if any(figure in row for row in found["rows"].values())
    ]


def rows_of(evaluations: dict[str, Any]) -> list[str]:
    """The rows that occur in an evaluation, in the order of ``ROWS``."""
    return [row for row in ROWS if any(row in found["rows"] for found in evaluations.values())]


def _title(name: str, figure: str, found: dict[str, Any]) -> str:
    return f"{name}, {found['metric'] if found['task'] == 'retrieval' else FIGURES[figure]}"


def _notes(results: dict[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    """The explanations of the table's numbers and marks."""
    evaluations = results["evaluations"]
    figures = [row[figure] for name, figure in columns for row in evaluations[name]["rows"].values() if figure in row]
    counts = sorted({len(figure["seeds"]) for figure in figures})
    comparisons = sum("difference" in figure for figure in figures)
    over = "one seed" if counts == [1] else f"mean ± sd over {' or '.join(map(str, counts)) or 'no'} seeds"
    notes = [
        f"Scores in %, {over}. Seeds differ in base model, alignment, task head and data order; test sets are the "
        'same. "others" is the mean over all languages except English.'
    ]
    if comparisons and counts[-1] > 1:
        least = least_sign_flip_p(counts[-1])
        weak = f"cannot give less than p = {least:.2g} with {counts[-1]} seeds"
        if least >= SIGNIFICANT:
            weak += f": {counts[-1]} seeds are too few to show a difference without that assumption"
        notes.append(
            f'In parentheses: the difference from "{ROWS[BASELINE].title}", paired by seed. `{MARK}`: p < '
            f"{SIGNIFICANT} in a two-sided paired t-test over seeds. The test assumes normally distributed differences "
            f"and is not corrected for the {comparisons} comparisons here. The exact sign-flip test, which does not "
            f"assume normality, {weak}."
        )
    elif comparisons:
        notes.append(
            f'In parentheses: the difference from "{ROWS[BASELINE].title}". One seed is not enough for a test.'
        )
    shared = [row for row in rows_of(evaluations) if ROWS[row].encoder != row]
    if shared and any(found["task"] == "retrieval" for found in evaluations.values()):
        same = (f'"{ROWS[row].title}" has the encoder of "{ROWS[ROWS[row].encoder].title}"' for row in shared)
        notes.append(f"Retrieval is scored before fine-tuning: {', '.join(same)}.")
    known = {name: found for name, found in evaluations.items() if "chance" in found}
    answers = sorted({CHANCE[found["task"]] for found in known.values() if found["measurable"]})
    if shown := [f"{name} {found['chance']:.1f}" for name, found in known.items() if found["measurable"]]:
        notes.append(f"Chance in English ({' or '.join(answers)}): {', '.join(shown)}.")
    for name, found in known.items():
        if not found["measurable"]:
            notes.append(
                f"**{name}: {NOT_MEASURABLE}.** The best row's English {found['metric']} is "
                f"{found['best_english']:.1f}, not above {found['needed']:.1f}, which is chance + 3 sd. "
                f"Chance: {found['chance']:.1f} ({CHANCE[found['task']]}), n = {found['n']:,}."
            )
    return notes


def format_table(results: dict[str, Any]) -> str:
    """The report in Markdown: the table of measurable evaluations, its explanations, and tables by language."""
    evaluations = results["evaluations"]
    columns = columns_of(evaluations)
    shown = rows_of(evaluations)
    parts = []
    if columns:
        head = ["", *(_title(name, figure, evaluations[name]) for name, figure in columns)]
        cells = [
            [cell(evaluations[name]["rows"].get(row, {}).get(figure)) for name, figure in columns] for row in shown
        ]
        parts.append(markdown_table(head, [[ROWS[row].title, *line] for row, line in zip(shown, cells, strict=True)]))
    parts += _notes(results, columns)
    for name, found in evaluations.items():
        if found["measurable"]:
            codes = list(next(iter(found["rows"].values()))["languages"])
            lines = [
                [ROWS[row].title, *(cell(scores["languages"][code]) for code in codes)]
                for row, scores in found["rows"].items()
            ]
            if sizes := found.get("sizes"):  # older versions did not write it
                lines.append(["n", *(f"{sizes[code]:,}" for code in codes)])
            parts.append(f"### {name}: {found['metric']} by language\n\n{markdown_table(['', *codes], lines)}")
    return "\n\n".join(parts) + "\n"
