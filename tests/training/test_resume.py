"""A run that was stopped and resumed equals the uninterrupted run bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from ppa_fast.data.store.prepare import prepare
from ppa_fast.errors import UserError
from ppa_fast.model.initialise import init_model
from ppa_fast.settings import Settings
from ppa_fast.training import preflight
from ppa_fast.training.checkpoint import Checkpoints
from ppa_fast.training.trainer import train
from tests.conftest import write_config
from tests.training.harness import largest_difference, metrics, run_here, run_ranks, start_ranks, tensors

LAYOUTS: dict[str, dict] = {
    "fp32": {},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "bf16": {"bf16": True},
    "zero1-bf16": {"stage": 1, "bf16": True},
    "zero2-bf16-offload": {"stage": 2, "bf16": True, "offload": True},
    "zero3-bf16": {"stage": 3, "bf16": True},
}
FILES = ("query", "exp_avg", "exp_avg_sq", "momentum", "queue")


def job(tiny, folder: Path, output: str, layout: str = "fp32", micro: int = 8, **options) -> dict:
    config = write_config(folder / f"{layout}-{micro}.json", 16, micro, **LAYOUTS[layout])
    base = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / output)}
    base |= {"deepspeed_config": str(config), "steps": 10, "queue_size": 40, "pooling": "mean", "log_every": 1}
    return {**base, "save_every": 4, "keep": 9, **options}


def same_end(one: Path, other: Path, step: int = 10) -> None:
    assert metrics(one) == metrics(other)
    for name in FILES:
        mine, theirs = tensors(one, step, name), tensors(other, step, name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit_with_dropout(tiny, tmp_path, layout):
    straight = tmp_path / "straight"
    run_here(job(tiny, tmp_path, "straight", layout))
    # A run that was killed after step 4: it has no later checkpoint, but metrics of later steps.
    cut = tmp_path / "cut"
    shutil.copytree(straight, cut)
    for later in ("step-00000008", "step-00000010"):
        shutil.rmtree(cut / "checkpoints" / later)
    (cut / "checkpoints" / "latest").write_text("step-00000004")
    assert run_here(job(tiny, tmp_path, "cut", layout))["step"] == 10
    same_end(straight, cut)
    different = (
        tensors(straight, 4, "query")["projection.0.weight"] != tensors(straight, 10, "query")["projection.0.weight"]
    )
    assert different.any()


@pytest.mark.parametrize(
    ("before", "after"), [("fp32", "zero1"), ("zero1", "fp32"), ("zero1", "zero3"), ("zero3", "zero2")]
)
def test_a_run_resumes_at_another_zero_stage(tiny, tmp_path, before, after):
    run_here(job(tiny, tmp_path, "straight", before, steps=6, schedule="constant"))
    run_here(job(tiny, tmp_path, "moved", before, steps=3, schedule="constant"))
    run_here(job(tiny, tmp_path, "moved", after, steps=6, schedule="constant"))
    assert [line["step"] for line in metrics(tmp_path / "moved")] == [1, 2, 3, 4, 5, 6]
    for name in ("query", "exp_avg", "momentum", "queue"):
        mine, theirs = tensors(tmp_path / "moved", 6, name), tensors(tmp_path / "straight", 6, name)
        assert largest_difference(mine, theirs) < 1e-5, name


@pytest.mark.slow
def test_a_run_resumes_with_other_ranks_and_another_stage(tiny, tmp_path):
    """Without dropout, metrics and weights differ only by rounding. Two ranks with dropout that resume unchanged give
    equal bits."""
    init_model(
        tmp_path / "model", str(tiny.tokenizer), layers=2, hidden=32, heads=2, max_positions=64, dropout=0.0, seed=1
    )
    common = {"model": str(tmp_path / "model"), "schedule": "constant", "anchor": 0.5}

    def half(ranks: int, before: str, after: str, steps: int) -> dict:
        """The first three steps of a run on this number of ranks, or the next three on the other number."""
        layout = before if steps == 3 else after
        return job(tiny, tmp_path, f"{ranks}-{before}-{after}", layout, micro=4, steps=steps, **common)

    one = [(1, "zero1", "zero1"), (1, "zero3", "zero1"), (1, "zero1-bf16", "zero3-bf16")]
    two = [(2, "zero1", "fp32"), (2, "zero3", "zero3"), (2, "zero1", "zero3"), (2, "zero3-bf16", "zero2-bf16-offload")]
    for move in one:
        run_here(half(*move, steps=3))
    dropout = [
        job(tiny, tmp_path, name, "zero3-bf16", micro=4, steps=steps, schedule="constant")
        for name, steps in (("cut", 3), ("cut", 6), ("straight", 6))
    ]
    run_ranks([half(*move, steps=3) for move in two] + [half(*move, steps=6) for move in one] + dropout, 2, tmp_path)
    same_end(tmp_path / "straight", tmp_path / "cut", 6)
    for move in two:
        run_here(half(*move, steps=6))
    for layout in ("fp32", "zero1-bf16"):
        run_here(job(tiny, tmp_path, f"straight-{layout}", layout, steps=6, **common))
    for ranks, before, after in one + two:
        name = f"{ranks}-{before}-{after}"
        rough = "bf16" in after
        straight = tmp_path / ("straight-zero1-bf16" if rough else "straight-fp32")
        lines, expected = metrics(tmp_path / name), metrics(straight)
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert [line["lr"] for line in lines] == [line["lr"] for line in expected]
        for key in ("loss", "loss_tlm", "loss_moco", "grad_norm"):
            found = [line[key] for line in lines]
            assert found == pytest.approx([line[key] for line in expected], rel=2e-2 if rough else 1e-4), (name, key)
        for file in ("query", "momentum", "exp_avg"):
            if not rough:
                mine, theirs = tensors(tmp_path / name, 6, file), tensors(straight, 6, file)
                assert largest_difference(mine, theirs) < 1e-5, (name, file)


def test_a_signal_to_one_rank_saves_and_stops_all_ranks_and_a_later_call_resumes(tiny, tmp_path):
    """Two ranks; only rank 1 receives the signal. Both save and exit with status 0."""
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


def test_resume_never_does_not_change_an_existing_run(tiny, tmp_path, finished):
    with pytest.raises(UserError, match="resume is never"):
        train(Settings(**job(tiny, tmp_path, "run", resume="never")))


def test_another_global_batch_is_an_error(tiny, tmp_path, finished):
    config = write_config(tmp_path / "other.json", 8)
    with pytest.raises(UserError, match=r"train_batch_size: found 8.*trained with 16"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", deepspeed_config=str(config))), 1)


def test_another_store_is_an_error(tiny, tmp_path, finished):
    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "store2", max_tokens=30)
    with pytest.raises(UserError, match="not the store"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", data=str(tmp_path / "store2"))), 1)


@pytest.mark.parametrize("other", [{"sampling_alpha": 0.3}, {"sampling_cap": 9}, {"max_upsampling": 2}])
def test_another_sampling_is_an_error(tiny, tmp_path, finished, other):
    (name,) = other
    with pytest.raises(UserError, match=f"^{name}: found .*, but the run in .* was trained with (1.0|None)"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", **other)), 1)
    # Checkpoints of versions without these settings.
    file = finished / "checkpoints" / "step-00000002" / "state.json"
    state = json.loads(file.read_text())
    del state["settings"][name]
    file.write_text(json.dumps(state))
    assert preflight.check(Settings(**job(tiny, tmp_path, "run")), 1).resume_from
    with pytest.raises(UserError, match=f"^{name}: found .*, but the run in .* was trained with (1.0|None)"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", **other)), 1)


def test_a_run_with_sampling_resumes_bit_for_bit(tiny, tmp_path, caplog):
    """Two stores; language pairs of unequal sizes are sampled equally, over several epochs."""
    prepare(tiny.pairs[:1], str(tiny.tokenizer), tmp_path / "more", max_tokens=30)
    more = {"data": [str(tiny.store), str(tmp_path / "more")], "sampling_alpha": 0.0, "sampling_cap": 20}
    for name, steps in (("cut", 3), ("cut", 8), ("straight", 8)):
        run_here(job(tiny, tmp_path, name, steps=steps, schedule="constant", **more))
    same_end(tmp_path / "straight", tmp_path / "cut", 8)
    store = yaml.safe_load((tmp_path / "cut" / "settings.yaml").read_text())["store"]
    assert (store["pairs"], store["draws"]) == ({"en-de": 300, "fr-en": 150}, {"en-de": 20, "fr-en": 20})
    assert "fr-en                    150              20   50.00%             0.13" in caplog.text


def test_weights_of_another_shape_are_an_error(tiny, tmp_path, finished):
    """The folder of the model may move, but its weights must have the same shapes."""
    init_model(tmp_path / "wide", str(tiny.tokenizer), layers=2, hidden=48, heads=2, max_positions=64)
    with pytest.raises(
        UserError, match=r"query\.safetensors: found weights that differ from those of \S+wide, such as mlm\.bert"
    ):
        run_here(job(tiny, tmp_path, "run", model=str(tmp_path / "wide"), steps=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("queue_size", 41), ("pooling", "cls"), ("learning_rate", 1e-4), ("contrast_layer", 1)],
)
def test_a_different_setting_that_changes_results_is_named(tiny, tmp_path, finished, name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        preflight.check(Settings(**job(tiny, tmp_path, "run", **{name: value})), 1)


def test_more_steps_are_allowed_and_logged(tiny, tmp_path, finished):
    plan = preflight.check(Settings(**job(tiny, tmp_path, "run", steps=7)), 1)
    assert any("planned for 2 steps, now for 7" in warning for warning in plan.warnings)
