"""Stage files to the table: figures, marks, chance level."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ppa_fast.ablation.picture import draw, picture
from ppa_fast.ablation.plan import Plan, read_plan
from ppa_fast.ablation.report import collect, format_table
from ppa_fast.ablation.stages import evaluated, result_file
from tests.ablation.plans import write_files, write_plan

LARGE = 400  # test rows: the chance level of two equal classes is 0.5; 0.575 is three deviations above


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    values = write_files(tmp_path / "data")
    rows = "".join(f"{i}\t{'ab'[i % 2]}\ttext\n" for i in range(LARGE))
    (tmp_path / "data" / "topic.en.tsv").write_text(f"index_id\tcategory\ttext\n{rows}", encoding="utf-8")
    plan = read_plan(write_plan(tmp_path / "plan.yaml", values, {"seeds": 3}))
    return replace(plan, evaluations=plan.evaluations[:2])


def write_scores(plan: Plan, out: Path, scores: Mapping[str, list[float]], english: float = 0.9) -> None:
    """Writes the German scores of the seeds of each row, as shares; the task's scores are accuracies."""
    for row, by_seed in scores.items():
        for seed, value in enumerate(by_seed):
            for evaluation in plan.evaluations:
                path = result_file(out, seed, row, evaluation)
                path.parent.mkdir(parents=True, exist_ok=True)
                if evaluation.task == "retrieval":
                    content = {"pairs": {"en-de": {"a_to_b": value, "b_to_a": 0.0, "n": 20}}}
                else:
                    content = {"seed": seed, "test": {"en": {"accuracy": english}, "de": {"accuracy": value}}}
                if evaluated(row, evaluation):
                    path.write_text(json.dumps(content), encoding="utf-8")


def test_figures_and_differences_equal_hand_computed_values(plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.10, 0.12, 0.14], "ppa": [0.60, 0.63, 0.63], "tlm": [0.09, 0.12, 0.18]})
    results = collect(plan, tmp_path)
    rows = results["evaluations"]["topic"]["rows"]
    assert rows["none"]["others"]["mean"] == pytest.approx(12)
    assert rows["none"]["others"]["sd"] == pytest.approx(2)
    assert rows["none"]["english"]["seeds"] == pytest.approx([90, 90, 90])
    assert "difference" not in rows["none"]["others"]
    difference = rows["ppa"]["others"]["difference"]
    assert difference["seeds"] == pytest.approx([50, 51, 49])
    assert (difference["mean"], difference["sd"]) == (pytest.approx(50), pytest.approx(1))
    assert difference["p"] < 0.001
    assert rows["tlm"]["others"]["difference"]["seeds"] == pytest.approx([-1, 0, 4])

    lines = format_table(results).splitlines()
    assert lines[0] == "|  | tatoeba, accuracy en→xx | topic, en | topic, others |"
    assert lines[2].split(" | ")[1:] == ["12.0 ± 2.0", "90.0 ± 0.0", "12.0 ± 2.0 |"]
    by_title = {line.split(" | ")[0].strip("| "): line for line in lines[2:5]}
    assert by_title["both (PPA)"].endswith("| 62.0 ± 1.7 (+50.0*) | 90.0 ± 0.0 (+0.0) | 62.0 ± 1.7 (+50.0*) |")
    assert "(+1.0)" in by_title["TLM only"]  # t = 1 / (2.65 / √3) = 0.65: no mark
    text = "\n".join(lines)
    assert "paired t-test over seeds" in text
    assert "6 comparisons" in text
    assert "cannot give less than p = 0.25 with 3 seeds: 3 seeds are too few" in text


def test_differences_use_the_seeds_that_both_rows_have(plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.1, 0.2], "moco": [0.5, 0.5, 0.8]})
    row = collect(plan, tmp_path)["evaluations"]["topic"]["rows"]["moco"]["others"]
    assert len(row["seeds"]) == 3
    assert row["difference"]["seeds"] == pytest.approx([40, 30])


def test_results_of_an_earlier_call_stay_in_the_table(plan: Plan, tmp_path: Path) -> None:
    """The later call has fewer seeds and rows, from its plan or from ``--seeds`` and ``--only``."""
    write_scores(plan, tmp_path, {"none": [0.1, 0.2, 0.3], "ppa": [0.5, 0.6, 0.7], "switched": [0.2, 0.3, 0.4]})
    results = collect(replace(plan, seeds=1, rows=("switched",)), tmp_path)
    assert results == collect(plan, tmp_path)
    assert results["seeds"] == 3
    rows = results["evaluations"]["topic"]["rows"]
    assert {row: rows[row]["others"]["mean"] for row in rows} == pytest.approx({"none": 20, "ppa": 60, "switched": 30})
    assert '"code-switching only" has the encoder of "no alignment".' in format_table(results)


def test_the_code_switched_row_shares_the_retrieval_scores_of_its_encoder(plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.1], "ppa": [0.5], "ppa-switched": [0.6]})
    results = collect(plan, tmp_path)
    assert list(results["evaluations"]["tatoeba"]["rows"]) == ["none", "ppa"]
    table = format_table(results)
    assert "| PPA + code-switching | – | 90.0 (+0.0) | 60.0 (+50.0) |" in table
    assert 'before fine-tuning: "PPA + code-switching" has the encoder of "both (PPA)".' in table
    assert "Scores in %, one seed." in table
    assert "One seed is not enough for a test." in table
    assert "*:" not in table


@pytest.mark.parametrize(("english", "measurable"), [(0.574, False), (0.576, True)])
def test_a_task_at_chance_is_not_measurable(english: float, measurable: bool, plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.5, 0.5], "ppa": [0.9, 0.9]}, english)
    results = collect(plan, tmp_path)
    found = results["evaluations"]["topic"]
    assert found["measurable"] is measurable
    assert (found["chance"], found["needed"], found["n"]) == (50.0, pytest.approx(57.5), LARGE)
    table = format_table(results)
    assert ("topic, en" in table) is measurable
    assert ("Chance in English (predicting the most frequent class): topic 50.0." in table) is measurable
    assert ("**topic: not measurable at this size.**" in table) is not measurable
    assert ("topic: not measurable at this size" in picture(results)) is not measurable


def test_english_can_be_either_side_of_a_retrieval_pair(plan: Plan, tmp_path: Path) -> None:
    path = result_file(tmp_path, 0, "none", plan.evaluations[0])
    path.parent.mkdir(parents=True)
    pairs = {
        "en-de": {"a_to_b": 0.2, "b_to_a": 0.3, "n": 10},
        "fr-en": {"a_to_b": 0.4, "b_to_a": 0.6, "n": 20},
        "eng-es": {"a_to_b": 0.7, "n": 1000},
    }
    path.write_text(json.dumps({"pairs": pairs}), encoding="utf-8")
    results = collect(plan, tmp_path)
    row = results["evaluations"]["tatoeba"]["rows"]["none"]
    assert {code: score["mean"] for code, score in row["languages"].items()} == pytest.approx(
        {"de": 20, "fr": 60, "es": 70}
    )
    assert row["others"]["mean"] == pytest.approx(50)
    assert "english" not in row
    assert format_table(results).splitlines()[-1] == "| n | 10 | 20 | 1,000 |"


def test_the_picture_is_svg_with_a_bar_for_each_figure(plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.1, 0.2, 0.3], "ppa": [0.5, 0.6, 0.7], "ppa-switched": [0.5, 0.6, 0.7]})
    results = collect(plan, tmp_path)
    bars = [bar for axes in draw(results).axes for bar in axes.patches]
    assert len(bars) == 2 + 3 * 2  # retrieval of two encoders; English and German of three rows
    assert [bar.get_width() for bar in bars[:2]] == pytest.approx([20, 60])
    dots = [line for axes in draw(results).axes for line in axes.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [3] * len(bars)
    assert ET.fromstring(picture(results)).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_picture_marks_chance_on_the_scale_of_the_scores(plan: Plan, tmp_path: Path) -> None:
    write_scores(plan, tmp_path, {"none": [0.1, 0.2, 0.3]})
    lines = [line for axes in draw(collect(plan, tmp_path)).axes for line in axes.lines]
    [dashed] = [line for line in lines if line.get_linestyle() == "--"]
    assert list(dashed.get_xdata()) == pytest.approx([50, 50])  # two classes, equally frequent


def test_the_documented_results_equal_the_result_files() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [root / "benchmarks" / "results" / f"ablation-small{more}.json" for more in ("", "-12000")]
    small, longer = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    page = " ".join((root / "docs" / "results.md").read_text(encoding="utf-8").split())
    without_languages = format_table(longer).split("### ")[0]
    for line in (format_table(small) + without_languages).splitlines():
        assert " ".join(line.lstrip("#").split()) in page
    assert (root / "docs" / "images" / "ablation-small.svg").read_text(encoding="utf-8") == picture(small)
