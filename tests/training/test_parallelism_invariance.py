"""Any split of a global batch gives the same masks and order, gradients, parameters, momentum encoder and queue."""

from __future__ import annotations

import ctypes
import ctypes.util
import json

import pytest
import torch
from torch import Tensor

from ppa_fast.model.initialise import init_model
from ppa_fast.training.json_lines import read_lines
from tests.conftest import pseudo_text, write_config
from tests.training.harness import largest_difference, metrics, run_here, run_ranks, tensors

STEPS, BATCH = 5, 16
SPLITS = {  # world size, stage, bf16, offload, micro-batch
    "whole": (1, 0, False, False, 16),
    "half": (1, 0, False, False, 8),
    "quarter": (1, 0, False, False, 4),
    "zero1": (1, 1, False, False, 8),
    "zero2": (1, 2, False, False, 8),
    "zero3": (1, 3, False, False, 8),
    "bf16": (1, 0, True, False, 8),
    "zero1-bf16": (1, 1, True, False, 8),
    "zero2-bf16-offload": (1, 2, True, True, 8),
    "zero3-bf16": (1, 3, True, False, 8),
    "2ranks": (2, 0, False, False, 8),
    "2ranks-half": (2, 0, False, False, 4),
    "2ranks-quarter": (2, 0, False, False, 2),
    "2ranks-zero1": (2, 1, False, False, 8),
    "2ranks-zero2": (2, 2, False, False, 4),
    "2ranks-zero2-offload": (2, 2, False, True, 4),
    "2ranks-zero3": (2, 3, False, False, 4),
    "2ranks-zero3-offload": (2, 3, False, True, 4),
    "2ranks-bf16": (2, 0, True, False, 8),
    "2ranks-zero1-bf16": (2, 1, True, False, 4),
    "2ranks-zero2-bf16": (2, 2, True, False, 4),
    "2ranks-zero3-bf16-offload": (2, 3, True, True, 4),
    "4ranks": (4, 0, False, False, 4),
    "4ranks-zero2": (4, 2, False, False, 2),
    "4ranks-zero3": (4, 3, False, False, 2),
    "4ranks-zero2-bf16-offload": (4, 2, True, True, 2),
    "4ranks-zero3-bf16": (4, 3, True, False, 2),
}


GPU = {  # on one GPU: stage, precision, offload
    f"{precision}-zero{stage}{'-offload' * offload}": (stage, precision, offload)
    for stage in range(4)
    for precision in ("fp32", "bf16", "fp16")
    for offload in (False, True)[: 1 + (stage > 1)]
}


def cuts(bf16: bool | None = None) -> list:
    names = [name for name, split in SPLITS.items() if bf16 in (None, split[2])]
    return [pytest.param(name, marks=[pytest.mark.slow] if SPLITS[name][0] == 4 else []) for name in names]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    init_model(
        folder / "model", str(tiny.tokenizer), layers=2, hidden=32, heads=2, max_positions=64, dropout=0.0, seed=1
    )
    for code, lines in pseudo_text(0, 152).items():  # fewer pairs than four ranks can share equally
        (folder / f"dev.{code}").write_text("\n".join(lines[150:]) + "\n", encoding="utf-8")
    return folder


def job(tiny, folder, name: str, *arguments, **options) -> dict:
    """Five steps without dropout, with a checkpoint at each step."""
    config = write_config(folder / f"{name}.json", BATCH, *arguments, **options)
    job = {"model": str(folder / "model"), "data": str(tiny.store), "output": str(folder / name)}
    job |= {"deepspeed_config": str(config), "steps": STEPS, "queue_size": 64, "pooling": "mean", "seed": 5}
    job |= {"save_every": 1, "log_every": 1, "keep": STEPS, "momentum": 0.9, "anchor": 0.5}
    return {**job, "eval_pairs": [f"en-de:{folder}/dev.en,{folder}/dev.de"]}


def jobs(tiny, folder, ranks: int) -> list[dict]:
    """Every split for this number of ranks."""
    return [
        job(tiny, folder, name, micro, stage, bf16, offload=offload)
        for name, (world, stage, bf16, offload, micro) in SPLITS.items()
        if world == ranks
    ]


@pytest.fixture(scope="module")
def runs(tiny, folder):
    run_ranks(jobs(tiny, folder, 2), 2, folder)
    for job in jobs(tiny, folder, 1):
        run_here(job)
    return folder


@pytest.fixture(scope="module")
def on_four(tiny, folder):
    run_ranks(jobs(tiny, folder, 4), 4, folder)


@pytest.fixture
def name(request, runs):
    if SPLITS[request.param][0] == 4:
        request.getfixturevalue("on_four")
    return request.param


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def test_every_step_is_logged(runs):
    assert [line["step"] for line in metrics(runs / "whole")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", cuts(bf16=False), indirect=True)
def test_gradients_agree(runs, name):
    """After one step Adam's first moment is (1 − β1) times the clipped gradient."""
    mine, reference = tensors(runs / name, 1, "exp_avg"), tensors(runs / "whole", 1, "exp_avg")
    size = distance(reference, {n: torch.zeros_like(t) for n, t in reference.items()})
    assert size > 0
    assert distance(mine, reference) < 1e-5 * size


@pytest.mark.parametrize("name", cuts(bf16=False), indirect=True)
def test_parameters_and_losses_agree_after_five_steps(runs, name):
    """Differences are relative to the distance that the parameters have moved. Where a gradient is almost 0, rounding
    decides its sign, and therefore the direction of Adam's update. One weight of 40,000 that does not move contributes
    about 1/200."""
    for file in ("query", "momentum"):
        start, whole = tensors(runs / "whole", 1, file), tensors(runs / "whole", STEPS, file)
        assert largest_difference(start, whole) > 1e-5
        assert distance(tensors(runs / name, STEPS, file), whole) < 1e-3 * distance(start, whole)
    for mine, reference in zip(metrics(runs / name), metrics(runs / "whole"), strict=True):
        for key in ("loss", "loss_tlm", "loss_moco", "grad_norm"):
            assert mine[key] == pytest.approx(reference[key], rel=1e-4)
        assert mine["lr"] == reference["lr"]
        assert mine["world_size"] == SPLITS[name][0]


@pytest.mark.parametrize("name", cuts(bf16=True), indirect=True)
def test_bf16_agrees_within_its_rounding(runs, name):
    for mine, reference in zip(metrics(runs / name), metrics(runs / "whole"), strict=True):
        assert mine["loss"] == pytest.approx(reference["loss"], rel=2e-2)
    start, whole = tensors(runs / "whole", 1, "query"), tensors(runs / "whole", STEPS, "query")
    moved = largest_difference(start, whole)
    assert 0 < largest_difference(tensors(runs / name, STEPS, "query"), whole) < 3 * moved


@pytest.mark.parametrize("name", cuts(), indirect=True)
def test_order_and_queue_groups_are_bit_equal(runs, name):
    mine, reference = tensors(runs / name, STEPS, "queue"), tensors(runs / "whole", STEPS, "queue")
    assert torch.equal(mine["groups"], reference["groups"])
    torch.testing.assert_close(mine["keys"], reference["keys"], rtol=0, atol=5e-2 if SPLITS[name][2] else 1e-5)


def momentum_moved_by_value(run) -> None:
    """``fmaf(m, k, (1 − m)·q)`` of the fp32 masters, bit for bit, for any partition of the masters."""
    fmaf = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    before, after = (tensors(run, step, "momentum") for step in (3, 4))
    query = tensors(run, 4, "query")
    for parameter in ("projection.0.weight", "mlm.bert.encoder.layer.1.output.dense.bias"):
        source = (query[parameter] * torch.tensor(1.0 - 0.9)).flatten().tolist()
        expected = [fmaf(0.9, k, q) for k, q in zip(before[parameter].flatten().tolist(), source, strict=True)]
        assert after[parameter].flatten().tolist() == expected
        assert not torch.equal(after[parameter], before[parameter])


@pytest.mark.parametrize("name", cuts(), indirect=True)
def test_the_momentum_update_is_exact_at_every_stage(runs, name):
    momentum_moved_by_value(runs / name)


@pytest.mark.parametrize("name", cuts(bf16=True), indirect=True)
def test_masters_start_from_the_checkpoint_not_from_its_bf16_rounding(runs, name):
    state = json.loads((runs / name / "checkpoints" / "step-00000001" / "state.json").read_text())
    assert state["applied"] == 1
    one, whole = tensors(runs / name, 1, "query"), tensors(runs / "whole", 1, "query")
    # One step moves a weight by at most the learning rate; rounding to bf16 would change it by up to 2^-9 of its value.
    assert largest_difference(one, whole) < 1e-4


@pytest.mark.parametrize("name", cuts(), indirect=True)
def test_evaluations_agree(runs, name):
    mine, reference = (read_lines(runs / run / "evaluations.jsonl") for run in (name, "whole"))
    assert [record["step"] for record in mine] == [0, STEPS]
    for one, other in zip(mine, reference, strict=True):
        for key, value in other["pairs"]["en-de"].items():
            assert one["pairs"]["en-de"][key] == pytest.approx(value, rel=2e-2 if SPLITS[name][2] else 1e-4), key


# The same on a GPU, compared with the CPU in fp32.


@pytest.fixture(scope="module")
def on_gpu(tiny, folder):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run_here(job(tiny, folder, "whole", BATCH))  # no work is left if the run is complete
    made = [
        job(tiny, folder, name, 8, stage, precision == "bf16", precision == "fp16", offload)
        for name, (stage, precision, offload) in GPU.items()
    ]
    run_ranks(made, 1, folder, device="cuda")
    return folder


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU)
def test_stages_and_precisions_agree_on_a_gpu(on_gpu, name):
    exact = GPU[name][1] == "fp32"
    for mine, reference in zip(metrics(on_gpu / name), metrics(on_gpu / "whole"), strict=True):
        assert mine["skipped"] == 0
        for key in ("loss", "loss_tlm", "loss_moco", "grad_norm"):
            assert mine[key] == pytest.approx(reference[key], rel=1e-3 if exact else 5e-2), key
    first, last = tensors(on_gpu / "whole", 1, "query"), tensors(on_gpu / "whole", STEPS, "query")
    away = largest_difference(tensors(on_gpu / name, STEPS, "query"), last)
    assert away < (2e-6 if exact else 3 * largest_difference(first, last))
    assert torch.equal(*(tensors(on_gpu / run, STEPS, "queue")["groups"] for run in (name, "whole")))
    momentum_moved_by_value(on_gpu / name)
