"""The real thing: ``deepspeed ppa_fast/train.py`` with two ranks, as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.training.harness import metrics

ROOT = Path(__file__).parents[2]


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    deepspeed = Path(sys.executable).parent / "deepspeed"
    command = [deepspeed, "--num_gpus", "2", "--master_port", "29617", ROOT / "ppa_fast" / "train.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_two_ranks_zero1_bf16_then_one_more_call_goes_on(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 16, 4, stage=1, bf16=True)
    where = ["--model", tiny.model, "--data", tiny.store, "--output", tmp_path / "run"]
    flags = [*where, "--deepspeed_config", config, "--queue-size", "16", "--log-every", "1"]
    done = launch(*flags, "--steps", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished at step 3 of 3" in done.stderr
    done = launch(*flags, "--steps", "5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(line["step"], line["world_size"]) for line in metrics(tmp_path / "run")] == [(n, 2) for n in range(1, 6)]


@pytest.mark.slow
def test_bad_input_is_one_line_from_one_rank(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 15)
    done = launch(
        "--model", tiny.model, "--data", tiny.store, "--output", tmp_path / "run", "--deepspeed_config", config
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "train_batch_size 15 is not a multiple" in errors[0]
    assert "Traceback" not in done.stderr
