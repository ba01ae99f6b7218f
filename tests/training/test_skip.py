"""A step whose loss, key or gradient is not finite changes only the count of skipped steps."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import deepspeed
import pytest

import ppa_fast.training.step
from tests.conftest import write_config
from tests.training.fault_injection import FAULTS, differing, injected, snapshot
from tests.training.harness import largest_difference, metrics, run_here, start_ranks, tensors, trainer_here

LAYOUTS: dict[str, dict] = {
    "fp32": {},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero3-offload": {"stage": 3, "offload": True},
    "bf16": {"bf16": True},
    "zero1-bf16": {"stage": 1, "bf16": True},
    "zero2-bf16": {"stage": 2, "bf16": True},
    "zero2-bf16-offload": {"stage": 2, "bf16": True, "offload": True},
    "zero3-bf16": {"stage": 3, "bf16": True},
}
TWO_RANKS = ("fp32", "zero1-bf16", "zero2-bf16-offload", "zero3")  # one per stage: start-up takes most of the time
FP16 = {f"zero{stage}-fp16": {"stage": stage, "fp16": True} for stage in range(4)}
FP16["zero2-fp16-offload"] = {"stage": 2, "fp16": True, "offload": True}


@pytest.fixture(scope="module", autouse=True)
def _fp16_on_a_cpu():
    """fp16 on a CPU is slow, and an error for users, but DeepSpeed handles an overflow of the gradient in the
    same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppa_fast.training.config.uses_cuda", lambda: True)
        patch.setattr(deepspeed.get_accelerator(), "is_fp16_supported", lambda: True)
        yield


def job(tiny, folder: Path, output: str, layout: str, micro: int = 8, **options) -> dict:
    config = write_config(folder / f"{layout}.json", 16, micro, **(LAYOUTS | FP16)[layout])
    base = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / output)}
    base |= {"deepspeed_config": str(config), "steps": 20, "queue_size": 40, "pooling": "mean", "log_every": 1}
    return {**base, **options}


@pytest.fixture(scope="module", params=[*LAYOUTS, *FP16])
def run(request, tiny, tmp_path_factory):
    """One valid step, one step with each fault (before, after, metrics), one valid step; and a run without faults."""
    folder = tmp_path_factory.mktemp("skip")
    seen = {}
    with trainer_here(job(tiny, folder, "run", request.param)) as trainer:
        trainer.train_step()
        for kind in FAULTS:
            before = snapshot(trainer)
            with injected(kind):
                found = trainer.train_step().read()
            seen[kind] = (before, snapshot(trainer), found)
        seen["next"] = (snapshot(trainer), trainer.train_step().read(), snapshot(trainer))
    with trainer_here(job(tiny, folder, "straight", request.param)) as trainer:
        trainer.train_step()
        trainer.state.step += len(FAULTS)
        seen["straight"] = (trainer.train_step().read(), snapshot(trainer))
    return seen


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=list(FAULTS))
def test_a_non_finite_step_changes_nothing_and_is_counted(run, number, figure):
    figure("steps that are not finite")
    kind = list(FAULTS)[number]
    before, after, found = run[kind]
    assert differing(before, after) == []
    assert found["skipped"] == number + 1
    assert found["step"] == number + 2  # the step itself is complete
    losses = found["loss"], found["loss_moco"], found["loss_tlm"]
    finite = {"loss": [0, 0, 1], "gradient": [1, 1, 1], "key": [0, 0, 1], "tlm": [0, 1, 0]}[kind]
    assert [math.isfinite(loss) for loss in losses] == [bool(each) for each in finite]
    assert not math.isfinite(found["grad_norm"])


def test_a_valid_step_changes_everything(run):
    """Otherwise the comparison above would not detect a change."""
    before, found, after = run["next"]
    assert set(differing(before, after)) == set(before) - {"count"}  # the queue was full before and after
    assert found["skipped"] == len(FAULTS)
    assert math.isfinite(found["grad_norm"])


def test_the_next_step_equals_that_of_a_run_without_faults(run):
    """No gradient, loss scale or queue row remains."""
    _, found, after = run["next"]
    expected, straight = run["straight"]
    assert {**expected, "skipped": len(FAULTS)} == found
    assert differing(straight, after) == []


def test_a_non_finite_key_is_not_enqueued_without_a_loss(tiny, tmp_path):
    """With a weight of 0 keys still fill the queue, but no loss shows that one is not finite."""
    with trainer_here(job(tiny, tmp_path, "run", "fp32", moco_weight=0)) as trainer:
        before = snapshot(trainer)
        with injected("key"):
            found = trainer.train_step().read()
        assert math.isfinite(found["loss"])
        assert found["skipped"] == 1
        assert differing(before, snapshot(trainer)) == []


def test_skipped_steps_are_in_metrics_state_and_result_after_a_resume(tiny, tmp_path, monkeypatch):
    options = job(tiny, tmp_path, "run", "fp32", steps=4, save_every=1, keep=9, warmup=0.5)
    calls = itertools.count()
    original = ppa_fast.training.step.objective

    def objective(*arguments):
        losses = original(*arguments)
        if next(calls) == 3:  # two micro-batches per step: the second one of step 2
            losses = replace(losses, total=losses.total * math.nan, contrast=losses.contrast * math.nan)
        return losses

    monkeypatch.setattr("ppa_fast.training.step.objective", objective)
    assert run_here(options)["skipped"] == 1
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0, 1, 1, 1]
    assert [line["loss"] is None for line in lines] == [False, True, False, False]
    assert [line["lr"] for line in lines] == pytest.approx([1.5e-5, 3e-5, 3e-5, 2e-5])
    states = [
        json.loads((tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        for step in (1, 2, 4)
    ]
    assert [(state["step"], state["applied"], state["skipped"]) for state in states] == [
        (1, 1, 0),
        (2, 1, 1),
        (4, 3, 1),
    ]
    assert run_here({**options, "steps": 5})["skipped"] == 1
    assert metrics(tmp_path / "run")[-1]["skipped"] == 1


@pytest.mark.slow
def test_a_fault_on_one_rank_of_two_skips_the_step_on_both(tiny, tmp_path, figure):
    figure("steps that are not finite", len(TWO_RANKS) * len(FAULTS))
    jobs = [job(tiny, tmp_path, f"run-{layout}", layout, micro=4) for layout in TWO_RANKS]
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps(jobs))
    ranks = start_ranks([str(Path(__file__).with_name("fault_injection.py")), str(path)], 2)
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(error[-2500:] for error in errors)


@pytest.mark.parametrize("layout", FP16)
def test_the_loss_scale_of_fp16_scales_no_gradient(tiny, tmp_path, layout):
    """Adam's first moment is (1 − β1) times the clipped gradient, and the norm is that of the unclipped one."""
    for name in ("fp32", layout):
        run_here(job(tiny, tmp_path, name, name, steps=1))
    norms = [metrics(tmp_path / name)[0]["grad_norm"] for name in (layout, "fp32")]
    assert norms[0] == pytest.approx(norms[1], rel=5e-2), "does DeepSpeed scale the loss at stage 0 now?"
    found, expected = (tensors(tmp_path / name, 1, "exp_avg") for name in (layout, "fp32"))
    assert largest_difference(found, expected) < 0.1 * max(float(tensor.abs().max()) for tensor in expected.values())


@pytest.mark.parametrize("layout", ["zero0-fp16", "zero1-fp16"])  # DeepSpeed has one scaler class for each stage
def test_an_fp16_overflow_halves_the_loss_scale_and_a_resume_keeps_it(tiny, tmp_path, layout):
    """A scale of 2^32 is too large for these gradients of about 1, because fp16 ends at 2^16. After three valid steps
    the scale is doubled again, even if a resume lies between them."""
    options = job(tiny, tmp_path, "run", layout, steps=24, save_every=11, keep=9, max_skipped=40)
    path = Path(options["deepspeed_config"])
    values = json.loads(path.read_text())
    values["fp16"] = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1, "loss_scale_window": 3}
    path.write_text(json.dumps(values))
    assert 16 <= run_here(options)["skipped"] < 24
    run = tmp_path / "run"
    lines = metrics(run)
    counts = [line["skipped"] for line in lines]
    assert counts[:16] == list(range(1, 17))
    assert [line["grad_norm"] is None for line in lines] == [a < b for a, b in pairwise([0, *counts])]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(line["grad_norm"] is None or line["grad_norm"] < 1000 for line in lines)  # without the scale
    early, end = (json.loads((run / f"checkpoints/step-{step:08d}/state.json").read_text()) for step in (11, 24))
    assert early["loss_scaler"].items() >= {"cur_scale": 2.0**21, "cur_iter": 11, "last_overflow_iter": 10}.items()
    assert end["loss_scaler"]["cur_iter"] == 24

    shutil.rmtree(run / "checkpoints" / "step-00000024")
    (run / "checkpoints" / "latest").write_text("step-00000022")
    run_here(options)
    assert metrics(run) == lines
    assert json.loads((run / "checkpoints/step-00000024/state.json").read_text()) == end


def test_fp16_resumes_from_another_precision_with_a_new_loss_scale(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "run", "bf16", steps=1))
    options = job(tiny, tmp_path, "run", "zero1-fp16", steps=2)
    path = Path(options["deepspeed_config"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "fp16": {"enabled": True, "initial_scale_power": 9}}))
    with trainer_here(options) as trainer:
        assert trainer.state.step == 1
        assert trainer.training_step.engine.optimizer.loss_scale == 2.0**9
