"""One global batch, cut any way: the same masks and order, gradients, parameters, momentum encoder and queue."""

from __future__ import annotations

import ctypes
import ctypes.util
import json

import pytest
import torch

from ppa_fast.model.initialise import init_model
from tests.conftest import write_config
from tests.training.harness import largest_difference, metrics, run_here, run_ranks, tensors

STEPS, BATCH = 5, 16
CUTS = {  # world size, stage, bf16, micro-batch
    "whole": (1, 0, False, 16),
    "half": (1, 0, False, 8),
    "quarter": (1, 0, False, 4),
    "zero1": (1, 1, False, 8),
    "bf16": (1, 0, True, 8),
    "zero1-bf16": (1, 1, True, 8),
    "2ranks": (2, 0, False, 8),
    "2ranks-half": (2, 0, False, 4),
    "2ranks-quarter": (2, 0, False, 2),
    "2ranks-zero1": (2, 1, False, 8),
    "2ranks-bf16": (2, 0, True, 8),
    "2ranks-zero1-bf16": (2, 1, True, 4),
}
FP32 = [name for name, cut in CUTS.items() if not cut[2]]
BF16 = [name for name, cut in CUTS.items() if cut[2]]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Every cut trained for five steps, dropout 0, a checkpoint each step."""
    folder = tmp_path_factory.mktemp("recut")
    init_model(
        folder / "model", str(tiny.tokenizer), layers=2, hidden=32, heads=2, max_positions=64, dropout=0.0, seed=1
    )
    jobs: dict[int, list[dict]] = {1: [], 2: []}
    for name, (world, stage, bf16, micro) in CUTS.items():
        config = write_config(folder / f"{name}.json", BATCH, micro, stage, bf16)
        job = {"model": str(folder / "model"), "data": str(tiny.store), "output": str(folder / name)}
        job |= {"deepspeed_config": str(config), "steps": STEPS, "queue_size": 64, "pooling": "mean", "seed": 5}
        job |= {"save_every": 1, "log_every": 1, "keep": STEPS, "momentum": 0.9}
        jobs[world].append(job)
    run_ranks(jobs[2], 2, folder)
    for job in jobs[1]:
        run_here(job)
    return folder


def test_it_trains(runs):
    first, *_, last = metrics(runs / "whole")
    assert last["loss"] < first["loss"]
    assert [line["step"] for line in metrics(runs / "whole")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", FP32)
def test_gradients_agree(runs, name):
    """After one step Adam's first moment is (1 − β1) times the clipped gradient."""
    mine, reference = tensors(runs / name, 1, "exp_avg"), tensors(runs / "whole", 1, "exp_avg")
    assert mine.keys() == reference.keys()
    difference = sum(float((mine[n].double() - reference[n].double()).square().sum()) for n in reference) ** 0.5
    size = sum(float(reference[n].double().square().sum()) for n in reference) ** 0.5
    assert size > 0
    assert difference < 1e-5 * size


@pytest.mark.parametrize("name", FP32)
def test_parameters_and_losses_agree_after_five_steps(runs, name):
    start, whole = tensors(runs / "whole", 1, "query"), tensors(runs / "whole", STEPS, "query")
    assert largest_difference(start, whole) > 2e-5  # they have moved
    assert largest_difference(tensors(runs / name, STEPS, "query"), whole) < 1e-6
    assert (
        largest_difference(tensors(runs / name, STEPS, "momentum"), tensors(runs / "whole", STEPS, "momentum")) < 1e-6
    )
    for mine, reference in zip(metrics(runs / name), metrics(runs / "whole"), strict=True):
        for key in ("loss", "loss_tlm", "loss_moco", "grad_norm"):
            assert mine[key] == pytest.approx(reference[key], rel=1e-4)
        assert mine["lr"] == reference["lr"]
        assert mine["world_size"] == CUTS[name][0]


@pytest.mark.parametrize("name", BF16)
def test_bf16_agrees_within_its_rounding(runs, name):
    for mine, reference in zip(metrics(runs / name), metrics(runs / "whole"), strict=True):
        assert mine["loss"] == pytest.approx(reference["loss"], rel=2e-2)
    start, whole = tensors(runs / "whole", 1, "query"), tensors(runs / "whole", STEPS, "query")
    moved = largest_difference(start, whole)
    assert 0 < largest_difference(tensors(runs / name, STEPS, "query"), whole) < 3 * moved


@pytest.mark.parametrize("name", list(CUTS))
def test_order_and_queue_groups_are_bit_equal(runs, name):
    mine, reference = tensors(runs / name, STEPS, "queue"), tensors(runs / "whole", STEPS, "queue")
    assert torch.equal(mine["groups"], reference["groups"])
    torch.testing.assert_close(mine["keys"], reference["keys"], rtol=0, atol=1e-5 if name in FP32 else 5e-2)


@pytest.mark.parametrize("name", list(CUTS))
def test_momentum_moves_by_value_at_every_stage(runs, name):
    """``fmaf(m, k, (1 − m)·q)`` of the fp32 masters, bit for bit, whoever holds which part of them."""
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    before, after = (tensors(runs / name, step, "momentum") for step in (3, 4))
    query = tensors(runs / name, 4, "query")
    for parameter in ("projection.0.weight", "mlm.bert.encoder.layer.1.output.dense.bias"):
        source = (query[parameter] * torch.tensor(1.0 - 0.9)).flatten().tolist()
        expected = [fmaf(0.9, k, q) for k, q in zip(before[parameter].flatten().tolist(), source, strict=True)]
        assert after[parameter].flatten().tolist() == expected
        assert not torch.equal(after[parameter], before[parameter])


def test_masters_start_from_the_checkpoint_not_from_its_bf16_rounding(runs):
    for name in BF16:
        state = json.loads((runs / name / "checkpoints" / "step-00000001" / "state.json").read_text())
        assert state["applied"] == 1
        one, whole = tensors(runs / name, 1, "query"), tensors(runs / "whole", 1, "query")
        # One step moves a weight by at most the learning rate; rounding to bf16 would move it by up to 2^-9 of itself.
        assert largest_difference(one, whole) < 1e-4
