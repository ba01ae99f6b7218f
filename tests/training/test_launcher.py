"""``deepspeed ppa_fast/train.py`` with two ranks, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ppa_fast.training import distributed
from ppa_fast.training.checkpoint import Checkpoints
from tests.conftest import write_config
from tests.training.harness import metrics
from tests.training.test_rank_monitor import LIMIT, LOST

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path | int) -> list[str]:
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_gpus", 2, "--master_port", distributed.free_port()]
    return list(map(str, [*launcher, ROOT / "ppa_fast" / "train.py", *arguments]))


def launch(*arguments: str | Path | int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_a_lost_rank_stops_the_run_and_another_call_resumes_it(tiny, tmp_path):
    """ZeRO-1 in bf16. Nothing of the first call blocks the second, and neither leaves shared memory behind."""
    run, config = tmp_path / "run", write_config(tmp_path / "ds.json", 16, 4, stage=1, bf16=True)
    flags = ["--model", tiny.model, "--data", tiny.store, "--output", run, "--deepspeed_config", config]
    flags += ["--queue-size", 16, "--log-every", 1, "--save-every", 1, "--schedule", "constant"]
    shared, log = set(os.listdir("/dev/shm")), run / "metrics.jsonl"
    with subprocess.Popen(command(*flags, "--steps", 100_000), stderr=subprocess.PIPE, text=True) as launcher:
        while not (log.exists() and log.read_text().count("\n") >= 3):
            assert launcher.poll() is None
            os.sched_yield()
        os.kill(_rank_process(str(run), 1), signal.SIGKILL)
        _, errors = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(LOST.format(1, 0), line)
    assert "Traceback" not in errors

    saved = Checkpoints(run).named("latest")
    steps = int(saved.name.removeprefix("step-")) + 2
    again = launch(*flags, "--steps", steps)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"resuming from {saved}" in again.stderr
    assert f"finished at step {steps} of {steps}" in again.stderr
    assert [(line["step"], line["world_size"]) for line in metrics(run)] == [(n + 1, 2) for n in range(steps)]
    assert set(os.listdir("/dev/shm")) <= shared


def _rank_process(run: str, rank: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:  # removed since
            continue
        if run in words and f"RANK={rank}" in environment and "--local_rank" in " ".join(words):
            return int(folder.name)
    raise AssertionError("no such process")


@pytest.mark.slow
def test_invalid_input_is_a_one_line_error_from_one_rank(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 15)
    done = launch(
        "--model", tiny.model, "--data", tiny.store, "--output", tmp_path / "run", "--deepspeed_config", config
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "train_batch_size: found 15, expected a multiple" in errors[0]
    assert "Traceback" not in done.stderr
