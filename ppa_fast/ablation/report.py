"""What an ablation found: results.json and a table in Markdown."""

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
from ppa_fast.data.languages import is_english
from ppa_fast.finetune.table import spread

SIGNIFICANT = 0.05
MARK = "*"
NOT_MEASURABLE = "not measurable at this size"
METRICS = {"retrieval": "accuracy en→xx", "nli": "accuracy", "classify": "accuracy", "qa": "F1"}
CHANCE = dict.fromkeys(("nli", "classify"), "always the most frequent class") | {"qa": "always the whole context"}
FIGURES = {"english": "en", "others": "others"}


@dataclass(frozen=True)
class Runs:
    """The scores of a row in %, by seed and language; only finished seeds are there."""

    by_seed: dict[int, dict[str, float]]

    def figure(self, name: str) -> dict[int, float]:
        """By seed: the score in English ("english"), or the mean over the other languages ("others")."""
        figures = {}
        for seed, scores in self.by_seed.items():
            values = [score for code, score in scores.items() if (code == ENGLISH) == (name == "english")]
            if values:
                figures[seed] = fmean(values)
        return figures


def read_scores(file: Path, task: str) -> dict[str, float]:
    """The score in % by language, in the file that a stage wrote; of retrieval from English to the language."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if task == "retrieval":
        scores = {}
        for pair, found in content["pairs"].items():
            a, b = pair.split("-")
            scores[b if is_english(a) else a] = 100 * found["a_to_b" if is_english(a) else "b_to_a"]
        return scores
    metric, scale = ("f1", 1) if task == "qa" else ("accuracy", 100)
    return {code: scale * found[metric] for code, found in content["test"].items()}


def seeds_of(out: Path) -> list[int]:
    """The seeds that were begun in the folder of an ablation."""
    return sorted(int(path.name.removeprefix("seed-")) for path in out.glob("seed-*"))


def _read_runs(evaluation: Evaluation, row: str, out: Path) -> Runs:
    files = {seed: result_file(out, seed, row, evaluation) for seed in seeds_of(out)}
    return Runs({seed: read_scores(file, evaluation.task) for seed, file in files.items() if file.is_file()})


def _row(runs: Runs, baseline: Runs | None) -> dict[str, Any]:
    """``spread`` by language and of both figures, and the figures' ``difference`` to the baseline, paired by seed."""
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
    """Whether some row's mean English score is above chance; retrieval has none, and a chance of nearly 0."""
    if evaluation.task == "retrieval":
        return {"measurable": True}
    gold = next(spec for spec in evaluation.test if spec.startswith(f"{ENGLISH}:")).split(":", 1)[1]
    share, n = chance(evaluation.task, gold)
    best = max(row["english"]["mean"] for row in rows.values())
    limit = 100 * needed(share, n)
    return {"measurable": best > limit, "chance": 100 * share, "needed": limit, "best_english": best, "n": n}


def collect(plan: Plan, out: Path) -> dict[str, Any]:
    """The results of all that is done, of rows and seeds that the plan does not have too.

    ``{"seeds", "evaluations": {name: {"task", "metric", "measurable", "chance", "needed", "best_english", "n", "rows":
    {row: {"languages": {code: spread}, "english": spread, "others": spread}}}}}``, scores in %. The two figures of a
    row but the baseline have a ``difference`` (see ``statistics.paired``).
    """
    evaluations: dict[str, Any] = {}
    for evaluation in plan.evaluations:
        runs = {row: _read_runs(evaluation, row, out) for row in ROWS if evaluated(row, evaluation)}
        runs = {row: found for row, found in runs.items() if found.by_seed}
        if not runs:
            continue
        rows = {row: _row(found, runs.get(BASELINE) if row != BASELINE else None) for row, found in runs.items()}
        about = {"task": evaluation.task, "metric": METRICS[evaluation.task], **_measurable(evaluation, rows)}
        evaluations[evaluation.name] = {**about, "rows": rows}
    return {"seeds": len(seeds_of(out)), "evaluations": evaluations}


def cell(figure: dict[str, Any] | None) -> str:
    """``41.0 ± 1.1 (+28.7*)``."""
    if figure is None:
        return "–"
    text = f"{figure['mean']:.1f}"
    if figure["sd"] is not None:
        text += f" ± {figure['sd']:.1f}"
    if difference := figure.get("difference"):
        mark = MARK if difference["p"] is not None and difference["p"] < SIGNIFICANT else ""
        text += f" ({difference['mean']:+.1f}{mark})"
    return text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns_of(evaluations: dict[str, Any]) -> list[tuple[str, str]]:
    """(evaluation, figure) of those that are measurable and have it."""
    return [
        (name, figure)
        for name, found in evaluations.items()
        if found["measurable"]
        for figure in FIGURES
        if any(figure in row for row in found["rows"].values())
    ]


def rows_of(evaluations: dict[str, Any]) -> list[str]:
    """The rows that some evaluation has, in order."""
    return [row for row in ROWS if any(row in found["rows"] for found in evaluations.values())]


def _title(name: str, figure: str, found: dict[str, Any]) -> str:
    return f"{name}, {found['metric'] if found['task'] == 'retrieval' else FIGURES[figure]}"


def _notes(results: dict[str, Any], columns: Sequence[tuple[str, str]]) -> list[str]:
    """What the table's numbers and marks mean."""
    evaluations = results["evaluations"]
    figures = [row[figure] for name, figure in columns for row in evaluations[name]["rows"].values() if figure in row]
    counts = sorted({len(figure["seeds"]) for figure in figures})
    comparisons = sum("difference" in figure for figure in figures)
    over = "Of one seed" if counts == [1] else f"Mean ± sd over {' or '.join(map(str, counts)) or 'no'} seeds"
    notes = [
        f"{over}, in %. Seeds differ in base, alignment, head and order, not in the test sets. "
        '"others" is the mean over the languages but English.'
    ]
    if comparisons and counts[-1] > 1:
        least = least_sign_flip_p(counts[-1])
        weak = f"cannot give less than p = {least:.2g} with {counts[-1]} seeds"
        if least >= SIGNIFICANT:
            weak += f": {counts[-1]} seeds are too few to show a difference without that assumption"
        notes.append(
            f'In brackets: the difference to "{ROWS[BASELINE].title}", seed by seed. `{MARK}`: p < {SIGNIFICANT} in a '
            f"two-sided paired t-test over seeds, which takes the differences to be normal, not corrected for the "
            f"{comparisons} comparisons here. The exact sign-flip test, which assumes nothing of the kind, {weak}."
        )
    elif comparisons:
        notes.append(f'In brackets: the difference to "{ROWS[BASELINE].title}"; one seed gives nothing to test it by.')
    shared = [row for row in rows_of(evaluations) if ROWS[row].encoder != row]
    if shared and any(found["task"] == "retrieval" for found in evaluations.values()):
        same = (f'"{ROWS[row].title}" has the encoder of "{ROWS[ROWS[row].encoder].title}"' for row in shared)
        notes.append(f"Retrieval is scored before fine-tuning: {', '.join(same)}.")
    known = {name: found for name, found in evaluations.items() if "chance" in found}
    answers = sorted({CHANCE[found["task"]] for found in known.values() if found["measurable"]})
    if shown := [f"{name} {found['chance']:.1f}" for name, found in known.items() if found["measurable"]]:
        notes.append(f"Chance in English, {' and '.join(answers)}: {', '.join(shown)}.")
    for name, found in known.items():
        if not found["measurable"]:
            notes.append(
                f"**{name}: {NOT_MEASURABLE}.** The best row's English {found['metric']}, {found['best_english']:.1f}, "
                f"is not above chance by 3 sd: chance {found['chance']:.1f} ({CHANCE[found['task']]}), "
                f"n = {found['n']:,}, needed {found['needed']:.1f}."
            )
    return notes


def format_table(results: dict[str, Any]) -> str:
    """Markdown: all rows with the figures of each measurable evaluation, what they mean, and tables by language."""
    evaluations = results["evaluations"]
    columns = columns_of(evaluations)
    shown = rows_of(evaluations)
    parts = []
    if columns:
        head = ["", *(_title(name, figure, evaluations[name]) for name, figure in columns)]
        cells = [
            [cell(evaluations[name]["rows"].get(row, {}).get(figure)) for name, figure in columns] for row in shown
        ]
        parts.append(_markdown(head, [[ROWS[row].title, *line] for row, line in zip(shown, cells, strict=True)]))
    parts += _notes(results, columns)
    for name, found in evaluations.items():
        if found["measurable"]:
            codes = list(next(iter(found["rows"].values()))["languages"])
            lines = [
                [ROWS[row].title, *(cell(scores["languages"][code]) for code in codes)]
                for row, scores in found["rows"].items()
            ]
            parts.append(f"### {name}: {found['metric']} by language\n\n{_markdown(['', *codes], lines)}")
    return "\n\n".join(parts) + "\n"
