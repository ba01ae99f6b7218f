"""Runs a toy plan completely: its commands, its table, and a second call that has nothing to do."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ppa_fast.ablation.runner import JOURNAL, ablate
from tests.ablation.plans import write_files, write_plan


@pytest.mark.slow
def test_a_toy_plan(tmp_path: Path) -> None:
    """Starting a process costs more than its work here, so the plan has few rows but every kind of stage."""
    values = write_files(tmp_path / "data")
    evaluations = {name: values["evaluations"][name] for name in ("tatoeba", "topic")}
    plan = write_plan(tmp_path / "plan.yaml", values, {"evaluations": evaluations})
    out = tmp_path / "out"
    ablate(plan, out, seeds=1, only=["none", "ppa-switched"])

    journal = json.loads((out / JOURNAL).read_text(encoding="utf-8"))
    assert list(journal) == [
        *("tokenizer", "seed-0/init", "seed-0/base", "store", "seed-0/ppa/run", "seed-0/ppa/model"),
        *("seed-0/none/tatoeba", "seed-0/none/topic", "seed-0/ppa-switched/topic"),
    ]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))["evaluations"]
    assert list(results["tatoeba"]["rows"]) == ["none"]
    assert list(results["topic"]["rows"]) == ["none", "ppa-switched"]
    assert list(results["topic"]["rows"]["none"]["languages"]) == ["en", "de"]
    assert results["topic"]["chance"] == 50
    assert ElementTree.parse(out / "picture.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "| no alignment | " in (out / "table.md").read_text(encoding="utf-8")
    assert not list((out / "seed-0").glob(".*"))  # the temporary files of pretraining are removed

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    ablate(plan, out, seeds=1, only=["none", "ppa-switched"])
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
