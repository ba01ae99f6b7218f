"""A step whose loss, key or gradient is not finite leaves no trace but a count."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import deepspeed
import pytest

import ppa_fast.training.loop
from tests.conftest import write_config
from tests.training.harness import metrics, run_here, start_ranks, trainer_here
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


def test_an_overflow_in_fp16_halves_the_loss_scale_and_a_resume_keeps_it(tiny, tmp_path):
    """2^32 is too much for these gradients, which are of the order of 1 where fp16 ends at 2^16."""
    options = job(tiny, tmp_path, "run", "zero1-fp16", steps=30, save_every=30, max_skipped=40)
    path = Path(options["deepspeed_config"])
    values = json.loads(path.read_text())
    values["fp16"] = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1, "loss_scale_window": 100}
    path.write_text(json.dumps(values))
    skipped = run_here(options)["skipped"]
    assert 16 <= skipped < 29
    lines = metrics(tmp_path / "run")
    counts = [line["skipped"] for line in lines]
    assert counts[:16] == list(range(1, 17))
    assert [line["grad_norm"] is None for line in lines] == [a < b for a, b in pairwise([0, *counts])]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["grad_norm"] is None or lines[-1]["grad_norm"] < 1000  # without the scale
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000030" / "state.json").read_text())
    assert state["loss_scale"] == 2.0 ** (32 - skipped)
    with trainer_here({**options, "steps": 31}) as trainer:
        assert trainer.masters.loss_scale == state["loss_scale"]
        assert trainer.skipped == skipped
