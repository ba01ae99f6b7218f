"""Sentence-level objectives besides the paper's: against a slow reference, split in any way, resumed, skipped."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppa_fast.data.store.prepare import prepare
from ppa_fast.model.initialise import init_model
from ppa_fast.training.step import load_model
from tests.conftest import write_config
from tests.training.fault_injection import differing, injected, snapshot
from tests.training.harness import metrics, run_here, run_ranks, tensors, trainer_here
from tests.training.test_parallelism_invariance import distance

BATCH, STEPS = 16, 3
SYMMETRIC = {"contrast": "symmetric", "queue_size": 0}
IN_BATCH = {"in_batch_negatives": True, "queue_size": 24, "momentum": 0.9}
OBJECTIVES: dict[str, dict] = {
    "symmetric": SYMMETRIC,
    "symmetric-no-head": {**SYMMETRIC, "projection_dim": 0, "tlm": False, "contrast_layer": 1},
    "in-batch-no-head": {**IN_BATCH, "projection_dim": 0, "contrast_layer": 1},
}
SPLITS: dict[str, tuple[int, dict]] = {  # ranks, DeepSpeed file
    "whole": (1, {"micro": 16}),
    "quarter": (1, {"micro": 4}),
    "zero3": (1, {"micro": 8, "stage": 3}),
    "zero1-bf16": (1, {"micro": 8, "stage": 1, "bf16": True}),
    "2ranks-quarter": (2, {"micro": 2}),
    "2ranks-zero2-offload": (2, {"micro": 4, "stage": 2, "offload": True}),
    "2ranks-zero3": (2, {"micro": 4, "stage": 3}),
}


def job(tiny, folder: Path, output: str, objective: str, split: str = "whole", **options) -> dict:
    config = write_config(folder / f"{split}.json", BATCH, **SPLITS[split][1])
    base = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / output), "seed": 5}
    base |= {"deepspeed_config": str(config), "steps": STEPS, "pooling": "mean", "log_every": 1}
    return {**base, "save_every": 1, "keep": 9, **OBJECTIVES[objective], **options}


@pytest.fixture(scope="module")
def still(tiny, tmp_path_factory):
    """A folder with a model without dropout."""
    folder = tmp_path_factory.mktemp("contrast")
    shape = {"layers": 2, "hidden": 32, "heads": 2, "max_positions": 64, "dropout": 0.0, "seed": 1}
    init_model(folder / "model", str(tiny.tokenizer), **shape)
    return folder


@pytest.fixture(scope="module")
def runs(tiny, still):
    """Every objective with every split."""

    def jobs(ranks: int) -> list[dict]:
        return [
            job(tiny, still, f"{objective}-{split}", objective, split, model=str(still / "model"))
            for objective in OBJECTIVES
            for split, (world, _) in SPLITS.items()
            if world == ranks
        ]

    for each in jobs(1):
        run_here(each)
    run_ranks(jobs(2), 2, still)
    return still


def reference_loss(query: Tensor, key: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """The mean over the pairs of InfoNCE in both directions, pair by pair."""
    terms = []
    for one, other in ((query, key), (key, query)):
        for i in range(len(groups)):
            scores = {j: one[i].dot(other[j]) / temperature for j in range(len(groups))}
            among = [score for j, score in scores.items() if j == i or groups[j] != groups[i]]
            terms.append(torch.stack(among).logsumexp(0) - scores[i])
    return torch.stack(terms).sum() / (2 * len(groups))


@pytest.mark.parametrize("split", ["whole", "quarter"])
@pytest.mark.parametrize("objective", ["symmetric", "symmetric-no-head"])
def test_a_step_has_the_gradient_of_the_loss_over_all_its_pairs(tiny, still, tmp_path, objective, split):
    """All pairs are in one graph, with each micro-batch packed as in training. Gradients come from both sides of every
    pair."""
    with trainer_here(job(tiny, tmp_path, "run", objective, split, model=str(still / "model"))) as trainer:
        step, settings = trainer.training_step, trainer.settings
        model = load_model(trainer.plan)
        model.load_state_dict(copy.deepcopy(step.engine.module.state_dict()))
        batches = step.prefetcher(0)
        tlm = sum(model(streams)[0] for _, streams in batches)
        query, key = (
            torch.cat([model.project(getattr(streams, side)) for _, streams in batches]) for side in ("query", "key")
        )
        contrast = reference_loss(query, key, torch.cat([b.groups for b, _ in batches]), settings.temperature)
        (tlm / max(1, batches[0][0].totals.masked) + contrast).backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found = trainer.train_step().read()
        moments = dict(step.masters.gather(step.masters.moments("exp_avg")))
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    assert found["loss_symmetric"] == pytest.approx(contrast.item(), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)
    scaled = {name: 0.1 * g * min(1.0, 1.0 / norm) for name, g in expected.items()}  # factor 1 − β1; clipped at 1
    moments = {name: moments[name] for name in expected}
    assert distance(moments, scaled) < 1e-4 * distance(scaled, {n: torch.zeros_like(g) for n, g in scaled.items()})


@pytest.mark.parametrize("split", [split for split, (_, config) in SPLITS.items() if not config.get("bf16")])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_does_not_depend_on_ranks_and_micro_batches(runs, objective, split):
    mine, whole = (runs / f"{objective}-{each}" for each in (split, "whole"))
    first = tensors(whole, 1, "exp_avg")
    size = distance(first, {name: torch.zeros_like(t) for name, t in first.items()})
    assert distance(tensors(mine, 1, "exp_avg"), first) < 1e-5 * size
    start, end = tensors(whole, 1, "query"), tensors(whole, STEPS, "query")
    assert distance(start, end) > 0
    assert distance(tensors(mine, STEPS, "query"), end) < 1e-3 * distance(start, end)
    for one, other in zip(metrics(mine), metrics(whole), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"loss", "loss_tlm", "loss_moco", "loss_symmetric", "grad_norm"}:
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bf16_agrees_within_its_rounding(runs, objective):
    for one, other in zip(*(metrics(runs / f"{objective}-{split}") for split in ("zero1-bf16", "whole")), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=3e-2)


def test_metrics_are_named_after_the_contrast(runs):
    line, queued = (metrics(runs / f"{objective}-whole")[-1] for objective in ("symmetric", "in-batch-no-head"))
    assert line["loss"] == pytest.approx(line["loss_tlm"] + line["loss_symmetric"])
    assert 0 <= line["in_batch_top1"] <= 1
    assert queued["loss"] == pytest.approx(queued["loss_tlm"] + queued["loss_moco"])
    assert not {"loss_moco", "queue_top1"} & line.keys()


def test_without_a_projection_there_are_no_projection_weights(runs):
    assert any(name.startswith("projection.") for name in tensors(runs / "symmetric-whole", 1, "query"))
    for objective in ("symmetric-no-head", "in-batch-no-head"):
        assert not any(name.startswith("projection.") for name in tensors(runs / f"{objective}-whole", 1, "query"))
    assert tensors(runs / "in-batch-no-head-whole", 1, "queue")["keys"].shape == (24, 32)


def test_layers_above_the_contrasts_are_trained_by_tlm_alone(runs):
    for objective in ("in-batch-no-head", "symmetric-no-head"):
        for split in SPLITS:
            start, end = (tensors(runs / f"{objective}-{split}", step, "query") for step in (1, STEPS))
            changed = {name for name in start if not torch.equal(start[name], end[name])}
            assert any(".layer.0." in name for name in changed)
            assert any(".layer.1." in name for name in changed) == OBJECTIVES[objective].get("tlm", True)


@pytest.mark.parametrize("split", ["whole", "quarter", "zero3"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit_with_dropout(tiny, tmp_path, objective, split):
    straight = tmp_path / "straight"
    run_here(job(tiny, tmp_path, "straight", objective, split))
    shutil.copytree(straight, tmp_path / "resumed")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "resumed" / "checkpoints" / "latest").write_text("step-00000001")
    assert run_here(job(tiny, tmp_path, "resumed", objective, split))["step"] == STEPS
    assert metrics(straight) == metrics(tmp_path / "resumed")
    files = ["query", "exp_avg", "exp_avg_sq"] + ["momentum", "queue"] * ("contrast" not in OBJECTIVES[objective])
    for name in files:
        mine, theirs = (tensors(run, STEPS, name) for run in (straight, tmp_path / "resumed"))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name


@pytest.mark.parametrize("split", ["whole", "quarter"])
def test_both_passes_use_the_same_dropout_with_and_without_tlm(tiny, tmp_path, split):
    """Otherwise the second pass would use gradients of other vectors in its backward."""
    seen: dict[bool, list[Tensor]] = {}
    for tlm in (True, False):
        with trainer_here(job(tiny, tmp_path, f"run-{tlm}", "symmetric", split, tlm=tlm)) as trainer:
            module = trainer.training_step.engine.module
            module.register_forward_hook(lambda _, __, found, at=tlm: seen.setdefault(at, []).append(found[1].detach()))
            trainer.train_step()
    passes = 1 if split == "whole" else 2
    assert [len(vectors) for vectors in seen.values()] == [passes * BATCH // SPLITS[split][1]["micro"]] * 2
    for vectors in seen.values():
        half = len(vectors) // passes
        assert all(map(torch.equal, vectors[:half], vectors[-half:]))
    assert all(map(torch.equal, seen[True], seen[False]))
    with trainer_here(job(tiny, tmp_path, "still", "symmetric", split)) as trainer:
        module = trainer.training_step.engine.module.eval()
        assert not torch.equal(module(trainer.training_step.prefetcher(0)[0][1])[1], seen[True][0])


def test_a_step_with_several_translations_of_a_sentence_is_applied(tiny, tmp_path):
    """Every English line has two translations, one in each of two languages. The step contains all pairs."""
    lines = [f"{word} {word}" for word in ("kalo", "mine", "puka", "lomi")]
    for code in ("en", "de", "fr"):
        (tmp_path / f"t.{code}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    specs = [f"en-{code}:{tmp_path}/t.en,{tmp_path}/t.{code}" for code in ("de", "fr")]
    prepare(specs, str(tiny.tokenizer), tmp_path / "store", max_tokens=30)
    config = write_config(tmp_path / "eight.json", 8, 2)
    options = job(tiny, tmp_path, "run", "symmetric", steps=1, data=str(tmp_path / "store"))
    with trainer_here({**options, "deepspeed_config": str(config)}) as trainer:
        groups = torch.cat([batch.groups for batch, _ in trainer.training_step.prefetcher(0)])
        assert groups.unique(return_counts=True)[1].tolist() == [2] * 4
        found = trainer.train_step().read()
    assert found["applied"]
    assert 0 < found["loss_symmetric"] < math.log(7) + 2 / 0.05


def test_a_step_of_one_pair_has_a_contrast_loss_of_0(tiny, tmp_path):
    """There is no negative, so only TLM changes the weights."""
    config = write_config(tmp_path / "one.json", 1, 1)
    with trainer_here(job(tiny, tmp_path, "run", "symmetric") | {"deepspeed_config": str(config)}) as trainer:
        found = trainer.train_step().read()
    assert found["loss_symmetric"] == 0
    assert found["in_batch_top1"] == 1
    assert found["applied"]


# MoCo with in-batch negatives.


@pytest.mark.parametrize("split", ["whole", "quarter"])
def test_keys_of_the_step_are_negatives_of_other_groups(tiny, still, tmp_path, split):
    """The newest K keys, including those of the step, are the negatives of its queries."""
    options = job(tiny, tmp_path, "run", "in-batch-no-head", split, model=str(still / "model"))
    with trainer_here(options) as trainer:
        step, settings = trainer.training_step, trainer.settings
        model = step.engine.module
        batches = sorted(step.prefetcher(0), key=lambda each: each[0].number)
        with torch.no_grad():
            query, key = (torch.cat([model.project(getattr(s, side)) for _, s in batches]) for side in ("query", "key"))
        groups, places = (torch.cat([getattr(b, name) for b, _ in batches]) for name in ("groups", "step_indices"))
        earlier, earlier_groups = step.queue.content()
        assert len(earlier) == settings.queue_size
        negatives = torch.cat([earlier, key[places.argsort()]])[-settings.queue_size :]
        negative_groups = torch.cat([earlier_groups, groups[places.argsort()]])[-settings.queue_size :]
        positive = (query * key).sum(1, keepdim=True)
        others = (query @ negatives.T).masked_fill(groups[:, None] == negative_groups, -torch.inf)
        scores = torch.cat([positive, others], dim=1) / settings.temperature
        expected = (scores.logsumexp(1) - scores[:, 0]).mean()
        assert trainer.train_step().read()["loss_moco"] == pytest.approx(expected.item(), rel=1e-5)
        assert torch.equal(step.queue.content()[1], negative_groups)


@pytest.mark.parametrize("layout", [{}, {"stage": 1, "bf16": True}, {"stage": 3}], ids=["fp32", "zero1-bf16", "zero3"])
@pytest.mark.parametrize("kind", ["loss", "key", "tlm"])
def test_a_skipped_step_removes_its_keys_from_the_queue(tiny, tmp_path, layout, kind):
    config = write_config(tmp_path / "ds.json", BATCH, 8, **layout)
    options = job(tiny, tmp_path, "run", "in-batch-no-head", steps=20) | {"deepspeed_config": str(config)}
    with trainer_here(options) as trainer:
        trainer.train_step()
        before = snapshot(trainer)
        with injected(kind):
            found = trainer.train_step().read()
        assert not found["applied"]
        assert differing(before, snapshot(trainer)) == []
        assert trainer.train_step().read()["applied"]


# Symmetric steps that are not finite.


def _not_finite(module, arguments, found):
    """In this context a vector of the forward pass is not finite, but the TLM loss is."""
    return found[0], found[1] + torch.nan * (torch.arange(len(found[1])) == 1)[:, None]


@pytest.mark.parametrize("layout", [{}, {"stage": 2}, {"stage": 3, "bf16": True}], ids=["fp32", "zero2", "zero3-bf16"])
@pytest.mark.parametrize("micro", [16, 4])
def test_a_non_finite_symmetric_step_is_skipped(tiny, tmp_path, layout, micro):
    config = write_config(tmp_path / "ds.json", BATCH, micro, **layout)
    options = job(tiny, tmp_path, "run", "symmetric", steps=20) | {"deepspeed_config": str(config)}
    with trainer_here(options) as trainer:
        step = trainer.training_step
        trainer.train_step()
        moved = [*step.masters.tensors, *step.masters.moments("exp_avg"), *step.masters.moments("step")]
        before = [tensor.detach().clone() for tensor in moved]
        hook = step.engine.module.register_forward_hook(_not_finite)
        found = trainer.train_step().read()
        hook.remove()
        assert (found["applied"], found["skipped"]) == (False, 1)
        assert math.isnan(found["loss_symmetric"])
        assert all(map(torch.equal, moved, before))
        assert trainer.train_step().read()["applied"]
