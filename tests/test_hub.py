"""Models, tokenizers and data sets by the names that they have on a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.hub import hub

MAIN = [sys.executable, "-c", "import sys; from ppa_fast.cli import main; sys.exit(main())"]


def run(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [*MAIN, *map(str, words)], env={**alone, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def repositories(tiny, tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    root = tmp_path / "root"
    shutil.copytree(tiny.model, root / "org" / "encoder")
    (root / "org" / "pairs").mkdir()
    files = tiny.pairs[0].partition(":")[2].split(",")
    english, german = (Path(file).read_text("utf-8").splitlines() for file in files)
    rows = [{"translation": {"en": a, "de": b}} for a, b in zip(english, german, strict=True)]
    datasets.Dataset.from_list(rows).to_parquet(root / "org" / "pairs" / "train.parquet")
    return root


@pytest.mark.slow
def test_a_model_and_a_data_set_by_name(repositories: Path, tmp_path: Path) -> None:
    store, output = tmp_path / "store", tmp_path / "run"
    with hub(repositories) as environment:
        done = run(
            environment, "prepare", "--pairs", "en-de:hf:org/pairs", "--tokenizer", "org/encoder", "--out", store
        )
        assert done.returncode == 0, done.stderr
        train = ["--model", "org/encoder", "--data", store, "--output", output, "--queue-size", "16", "--steps", "1"]
        done = run(environment, "train", *train, "--deepspeed_config", write_config(tmp_path / "ds.json"))
        assert done.returncode == 0, done.stderr
    manifest = json.loads((store / "manifest.json").read_text())
    assert (manifest["pairs"], manifest["tokenizer"]["name"]) == (150, "org/encoder")
    done = run({}, "export", output, "--out", tmp_path / "aligned")
    assert done.returncode == 0, done.stderr
    assert "base_model: org/encoder" in (tmp_path / "aligned" / "README.md").read_text()


def test_names_that_are_not_there(repositories: Path, tmp_path: Path) -> None:
    with hub(repositories) as environment:
        for pairs, tokenizer, found in (
            ("en-de:hf:org/absent", "org/encoder", "error: hf:org/absent: cannot be read: "),
            ("en-de:hf:org/pairs", "org/absent", "error: org/absent: cannot be loaded with AutoTokenizer: "),
        ):
            done = run(environment, "prepare", "--pairs", pairs, "--tokenizer", tokenizer, "--out", tmp_path / "store")
            assert done.returncode == 2, done.stderr
            assert done.stderr.splitlines()[-1].startswith(found)
