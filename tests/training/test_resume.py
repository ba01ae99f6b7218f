"""Stopping and going on: bit for bit the run that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ppa_fast.errors import UserError
from ppa_fast.settings import Settings
from ppa_fast.training.checkpoint import Checkpoints, read_tensors
from ppa_fast.training.loop import train
from ppa_fast.training.plan import make_plan
from tests.conftest import write_config
from tests.training.harness import largest_difference, metrics, run_here, start_ranks, tensors

FILES = ("query", "exp_avg", "exp_avg_sq", "momentum", "queue")


def job(tiny, folder: Path, output: str, stage: int = 0, bf16: bool = False, **options) -> dict:
    config = write_config(folder / f"config-{stage}-{bf16}.json", 16, 8, stage, bf16)
    base = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / output)}
    base |= {"deepspeed_config": str(config), "steps": 10, "queue_size": 40, "pooling": "mean", "log_every": 1}
    return {**base, "save_every": 4, "keep": 9, **options}


def same_end(one: Path, other: Path, step: int = 10) -> None:
    assert metrics(one) == metrics(other)
    for name in FILES:
        mine, theirs = tensors(one, step, name), tensors(other, step, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (1, False), (0, True), (1, True)])
def test_interrupted_equals_straight_bit_for_bit_with_dropout(tiny, tmp_path, stage, bf16):
    straight = tmp_path / "straight"
    run_here(job(tiny, tmp_path, "straight", stage, bf16))
    # A run that was lost after step 4: no later checkpoint, but metrics of later steps were already written.
    cut = tmp_path / "cut"
    shutil.copytree(straight, cut)
    for later in ("step-00000008", "step-00000010"):
        shutil.rmtree(cut / "checkpoints" / later)
    (cut / "checkpoints" / "latest").write_text("step-00000004")
    assert run_here(job(tiny, tmp_path, "cut", stage, bf16))["step"] == 10
    same_end(straight, cut)
    different = (
        tensors(straight, 4, "query")["projection.0.weight"] != tensors(straight, 10, "query")["projection.0.weight"]
    )
    assert different.any()


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_goes_on_at_another_zero_stage(tiny, tmp_path, before, after):
    run_here(job(tiny, tmp_path, "straight", before, steps=6, schedule="constant"))
    run_here(job(tiny, tmp_path, "moved", before, steps=3, schedule="constant"))
    run_here(job(tiny, tmp_path, "moved", after, steps=6, schedule="constant"))
    assert [line["step"] for line in metrics(tmp_path / "moved")] == [1, 2, 3, 4, 5, 6]
    for name in ("query", "exp_avg", "momentum", "queue"):
        mine, theirs = tensors(tmp_path / "moved", 6, name), tensors(tmp_path / "straight", 6, name)
        assert largest_difference(mine, theirs) < 1e-5, name


def test_a_signal_stops_all_ranks_after_a_step_saved_and_a_later_call_goes_on(tiny, tmp_path):
    """Two ranks; only rank 1 gets the signal. Both save and end with status 0."""
    settings = job(tiny, tmp_path, "run", steps=100_000, save_every=100_000)
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([settings]))
    ranks = start_ranks([str(Path(__file__).with_name("ranks.py")), str(jobs)], 2)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert all(process.poll() is None for process in ranks), ranks[0].communicate()[1][-3000:]
        os.sched_yield()
    ranks[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors[0][-3000:]
    assert "stopped by a signal, saved" in errors[0]
    stopped = metrics(tmp_path / "run")[-1]["step"]
    assert Checkpoints(tmp_path / "run").named("latest").name == f"step-{stopped:08d}"
    assert run_here({**settings, "steps": stopped + 2})["step"] == stopped + 2
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, stopped + 3))


@pytest.fixture
def finished(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "run", steps=2, save_every=1, keep=1))
    return tmp_path / "run"


def test_only_the_newest_checkpoints_are_kept(finished):
    assert [p.name for p in (finished / "checkpoints").glob("step-*")] == ["step-00000002"]


def test_resume_never_refuses_to_touch_a_run(tiny, tmp_path, finished):
    with pytest.raises(UserError, match="resume is never"):
        train(Settings(**job(tiny, tmp_path, "run", resume="never")))


def test_another_global_batch_is_an_error(tiny, tmp_path, finished):
    config = write_config(tmp_path / "other.json", 8)
    with pytest.raises(UserError, match=r"train_batch_size: found 8.*trained with 16"):
        make_plan(Settings(**job(tiny, tmp_path, "run", deepspeed_config=str(config))), 1)


def test_another_store_is_an_error(tiny, tmp_path, finished):
    from ppa_fast.data.prepare import prepare

    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "store2", max_tokens=30)
    with pytest.raises(UserError, match="not the store"):
        make_plan(Settings(**job(tiny, tmp_path, "run", data=str(tmp_path / "store2"))), 1)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 1), ("queue_size", 41), ("pooling", "cls"), ("learning_rate", 1e-4)]
)
def test_another_setting_that_matters_is_an_error_that_names_it(tiny, tmp_path, finished, name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        make_plan(Settings(**job(tiny, tmp_path, "run", **{name: value})), 1)


def test_more_steps_are_said_and_allowed(tiny, tmp_path, finished):
    plan = make_plan(Settings(**job(tiny, tmp_path, "run", steps=7)), 1)
    assert any("planned for 2 steps, now for 7" in warning for warning in plan.warnings)


def test_a_truncated_file_is_an_error_that_names_it(tiny, tmp_path, finished):
    file = finished / "checkpoints" / "step-00000002" / "query.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"query\.safetensors: cannot be read"):
        read_tensors(file.parent, "query")


def test_a_save_that_dies_leaves_the_one_before_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    content = {"query": {"w": torch.arange(4.0)}}
    checkpoints.save(1, {"step": 1}, content)

    def die(*_):
        raise OSError("disk full")

    monkeypatch.setattr("ppa_fast.training.checkpoint.save_file", die)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, {"step": 2}, content)
    monkeypatch.undo()
    assert checkpoints.named("latest") == checkpoints.path(1)
    assert not checkpoints.path(2).exists()
    checkpoints.save(3, {"step": 3}, content)
    checkpoints.prune(1)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["latest", "step-00000003"]
