"""A step whose loss, key or gradient is not finite leaves no trace but a count."""

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

import ppa_fast.training.loop
from tests.conftest import write_config
from tests.training.harness import largest_difference, metrics, run_here, start_ranks, tensors, trainer_here
from tests.training.poison import POISONS, differing, poisoned, snapshot

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
FP16 = {f"zero{stage}-fp16": {"stage": stage, "fp16": True} for stage in range(4)}
FP16["zero2-fp16-offload"] = {"stage": 2, "fp16": True, "offload": True}


@pytest.fixture(scope="module", autouse=True)
def _fp16_on_a_cpu():
    """Slow, and refused to users; what DeepSpeed does with a gradient that overflows is the same."""
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
    """One good step, one with each poison (before, after, metrics), one good step; and a run that knew no poison."""
    folder = tmp_path_factory.mktemp("skip")
    seen = {}
    with trainer_here(job(tiny, folder, "run", request.param)) as trainer:
        trainer.train_step()
        for kind in POISONS:
            before = snapshot(trainer)
            with poisoned(kind):
                found = trainer.train_step().read()
            seen[kind] = (before, snapshot(trainer), found)
        seen["next"] = (snapshot(trainer), trainer.train_step().read(), snapshot(trainer))
    with trainer_here(job(tiny, folder, "straight", request.param)) as trainer:
        trainer.train_step()
        trainer.step += len(POISONS)
        seen["straight"] = (trainer.train_step().read(), snapshot(trainer))
    return seen


@pytest.mark.parametrize("number", range(len(POISONS)), ids=list(POISONS))
def test_nothing_moves_and_the_step_is_counted(run, number):
    kind = list(POISONS)[number]
    before, after, found = run[kind]
    assert differing(before, after) == []
    assert found["skipped"] == number + 1
    assert found["step"] == number + 2  # the step itself is over
    losses = found["loss"], found["loss_moco"], found["loss_tlm"]
    finite = {"loss": [0, 0, 1], "gradient": [1, 1, 1], "key": [0, 0, 1], "tlm": [0, 1, 0]}[kind]
    assert [math.isfinite(loss) for loss in losses] == [bool(each) for each in finite]
    assert not math.isfinite(found["grad_norm"])


def test_a_good_step_moves_everything(run):
    """So that the comparison above would notice."""
    before, found, after = run["next"]
    assert set(differing(before, after)) == set(before) - {"count"}  # the queue was full and is
    assert found["skipped"] == len(POISONS)
    assert math.isfinite(found["grad_norm"])


def test_the_next_step_is_that_of_a_run_without_the_broken_ones(run):
    """No gradient, loss scale or queue row is left over."""
    _, found, after = run["next"]
    expected, straight = run["straight"]
    assert {**expected, "skipped": len(POISONS)} == found
    assert differing(straight, after) == []


def test_a_key_that_no_loss_sees_does_not_enter_the_queue(tiny, tmp_path):
    """With a weight of 0 keys still fill the queue, while no loss tells that one is not finite."""
    with trainer_here(job(tiny, tmp_path, "run", "fp32", moco_weight=0)) as trainer:
        before = snapshot(trainer)
        with poisoned("key"):
            found = trainer.train_step().read()
        assert math.isfinite(found["loss"])
        assert found["skipped"] == 1
        assert differing(before, snapshot(trainer)) == []


def test_skips_are_in_metrics_state_and_result_and_survive_a_resume(tiny, tmp_path, monkeypatch):
    options = job(tiny, tmp_path, "run", "fp32", steps=4, save_every=1, keep=9, warmup=0.5)
    calls = itertools.count()
    original = ppa_fast.training.loop.objective

    def objective(*arguments):
        losses = original(*arguments)
        if next(calls) == 3:  # two micro-batches a step: the second of step 2
            losses = replace(losses, total=losses.total * math.nan, moco=losses.moco * math.nan)
        return losses

    monkeypatch.setattr("ppa_fast.training.loop.objective", objective)
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
def test_one_poisoned_rank_of_two_stops_the_step_for_both(tiny, tmp_path):
    jobs = [job(tiny, tmp_path, f"run-{layout}", layout, micro=4) for layout in LAYOUTS]
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps(jobs))
    ranks = start_ranks([str(Path(__file__).with_name("poison.py")), str(path)], 2)
    errors = [process.communicate(timeout=300)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(error[-2500:] for error in errors)


@pytest.mark.parametrize("layout", FP16)
def test_the_loss_scale_of_fp16_scales_no_gradient(tiny, tmp_path, layout):
    """Adam's first moment is (1 − β1) times the clipped gradient, and the norm that of the unclipped one."""
    for name in ("fp32", layout):
        run_here(job(tiny, tmp_path, name, name, steps=1))
    norms = [metrics(tmp_path / name)[0]["grad_norm"] for name in (layout, "fp32")]
    assert norms[0] == pytest.approx(norms[1], rel=5e-2), "does DeepSpeed scale the loss at stage 0 now?"
    found, expected = (tensors(tmp_path / name, 1, "exp_avg") for name in (layout, "fp32"))
    assert largest_difference(found, expected) < 0.1 * max(float(tensor.abs().max()) for tensor in expected.values())


@pytest.mark.parametrize("layout", ["zero0-fp16", "zero1-fp16"])  # DeepSpeed has a scaler for each
def test_an_overflow_in_fp16_halves_the_loss_scale_which_a_resume_goes_on_with(tiny, tmp_path, layout):
    """2^32 is too much for these gradients, which are of the order of 1 where fp16 ends at 2^16. After three good steps
    the scale is doubled again, also where a resume lies between them."""
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


def test_fp16_goes_on_from_another_precision_with_its_own_loss_scale(tiny, tmp_path):
    run_here(job(tiny, tmp_path, "run", "bf16", steps=1))
    options = job(tiny, tmp_path, "run", "zero1-fp16", steps=2)
    path = Path(options["deepspeed_config"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "fp16": {"enabled": True, "initial_scale_power": 9}}))
    with trainer_here(options) as trainer:
        assert trainer.step == 1
        assert trainer.engine.optimizer.loss_scale == 2.0**9
