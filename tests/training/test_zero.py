"""The adapter to DeepSpeed's internals: where the fp32 masters are, and which parameters they contain."""

from __future__ import annotations

import json

import deepspeed
import pytest
import torch

from ppa_fast.training.json_lines import read_lines
from ppa_fast.training.optimizer import AdamW
from tests.conftest import pseudo_text, write_config
from tests.training.harness import run_here, trainer_here

MOVED = f"DeepSpeed {deepspeed.__version__} has moved what ppa_fast/training/zero.py relies on (tried with 0.19.8): "


ZERO = "DeepSpeedZeroOptimizer"
LAYOUTS = {  # stage of the DeepSpeed file, DeepSpeed's wrapper of the optimizer
    "fp32": ({}, "AdamW"),
    "zero1": ({"stage": 1}, ZERO),
    "zero2": ({"stage": 2}, ZERO),
    "zero3": ({"stage": 3}, ZERO + "_Stage3"),
    "zero3-offload": ({"stage": 3, "offload": True}, ZERO + "_Stage3"),
    "bf16": ({"bf16": True}, "FP16_UnfusedOptimizer"),
    "zero1-bf16": ({"stage": 1, "bf16": True}, "FlatBF16Optimizer"),
    "zero1-bf16-sums-in-bf16": ({"stage": 1, "bf16": True, "sums": "bf16"}, ZERO),
    "zero2-bf16": ({"stage": 2, "bf16": True}, ZERO),
    "zero2-bf16-offload": ({"stage": 2, "bf16": True, "offload": True}, ZERO),
    "zero3-bf16": ({"stage": 3, "bf16": True}, ZERO + "_Stage3"),
}


@pytest.fixture(params=list(LAYOUTS), scope="module")
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory, layout):
    folder = tmp_path_factory.mktemp("zero")
    config = write_config(folder / "ds.json", 16, 8, **LAYOUTS[layout][0])
    job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / "run"), "pooling": "mean"}
    # Only the names of trainable weights are allowed.
    job |= {"deepspeed_config": str(config), "steps": 9, "queue_size": 40, "freeze_layers": 1}
    with trainer_here(job) as trainer:
        yield trainer


def trainable(trainer) -> dict[str, torch.Tensor]:
    """Copies of the complete working weights."""
    parameters = {name: p for name, p in trainer.training_step.engine.module.named_parameters() if p.requires_grad}
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=trainer.training_step.masters.stage == 3):
        return {name: p.detach().clone() for name, p in parameters.items()}


def random_values(trainer, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in trainable(trainer).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_deepspeed_is_built_as_the_adapter_expects(trainer, layout):
    """Fails first, with the reason, if a new DeepSpeed stores the masters in another place."""
    engine, masters = trainer.training_step.engine, trainer.training_step.masters
    assert type(engine.optimizer).__name__ == LAYOUTS[layout][1], MOVED + "the class around the optimizer"
    assert isinstance(engine.basic_optimizer, AdamW), MOVED + "engine.basic_optimizer is not the client's"
    assert all(t.dtype == torch.float32 for t in masters.tensors), MOVED + "param_groups do not hold fp32 masters"
    expected = torch.bfloat16 if "bf16" in layout else torch.float32
    assert {p.dtype for p in trainable(trainer).values()} == {expected}, MOVED + "the working precision"
    if layout == "bf16":
        kept = [id(t) for group in engine.optimizer.fp32_groups for t in group]
        assert kept == [id(t) for t in masters.tensors], MOVED + "FP16_UnfusedOptimizer.fp32_groups"
    stage = LAYOUTS[layout][0].get("stage", 0)
    assert trainer.training_step.masters.stage == stage
    if stage in (1, 2):
        assert len(masters.tensors) == len(engine.optimizer.param_groups), MOVED + "one flat partition a group"
        for name, parameter in masters.parameters.items():
            mapping = getattr(parameter, "_hp_mapping", None)
            assert mapping is not None, MOVED + f"_hp_mapping of {name}"
            size = mapping.lp_fragment_address.numel
            assert size == mapping.hp_fragment_address.numel == parameter.numel(), MOVED + "fragment addresses"
    elif stage == 3:
        assert len(masters.tensors) > 2, "the masters are to be cut in sub-groups here"
        for tensor, group in zip(masters.tensors, engine.optimizer.fp16_groups, strict=True):
            assert len(tensor) == sum(p.partition_numel() for p in group), MOVED + "fp32_partitioned_groups_flat"
    else:
        assert len(masters.tensors) == len(trainable(trainer)), MOVED + "one master a parameter"


def test_pieces_cover_every_element_once(trainer):
    parameters = trainable(trainer)
    assert {name: p.shape for name, p in parameters.items()} == trainer.training_step.masters.shapes
    seen = {name: torch.zeros(p.numel(), dtype=torch.int64) for name, p in parameters.items()}
    for tensor, ranks in zip(trainer.training_step.masters.tensors, trainer.training_step.masters.pieces, strict=True):
        assert len(ranks) == 1  # one rank has all elements
        taken = torch.zeros(tensor.numel(), dtype=torch.int64)
        for piece in ranks[0]:
            assert piece.length > 0
            seen[piece.name][piece.start : piece.start + piece.length] += 1
            taken[piece.offset : piece.offset + piece.length] += 1
        assert taken.max() == 1
    assert all((count == 1).all() for count in seen.values())


def test_gather_returns_the_complete_trainable_parameters(trainer):
    gathered = list(trainer.training_step.masters.gather(trainer.training_step.masters.tensors))
    names = [name for name, _ in gathered]
    parameters = trainable(trainer)
    assert sorted(names) == sorted(parameters)
    assert len(set(names)) == len(names)
    assert all(tensor.shape == parameters[name].shape for name, tensor in gathered)
    frozen = set(dict(trainer.training_step.engine.module.named_parameters())) - set(names)
    assert frozen == set(trainer.training_step.frozen)
    assert all(name.startswith(("mlm.bert.embeddings.", "mlm.bert.encoder.layer.0.")) for name in frozen)
    assert frozen


def test_scatter_then_gather_is_the_identity(trainer):
    masters, values = trainer.training_step.masters, random_values(trainer, 1)
    scratch = [torch.full_like(t.detach(), torch.nan) for t in masters.tensors]
    masters.scatter(scratch, values)
    assert equal(dict(masters.gather(scratch)), values)
    again = [torch.full_like(t, torch.nan) for t in scratch]
    masters.scatter(again, dict(masters.gather(scratch)))
    assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(again, scratch, strict=True))
    kept = dict(masters.gather([t.to(torch.bfloat16) for t in scratch]))
    assert {t.dtype for t in kept.values()} == {torch.bfloat16}
    assert all(torch.equal(kept[name], values[name].to(torch.bfloat16)) for name in values)


def test_gathered_tensors_are_copies(trainer):
    masters = trainer.training_step.masters
    before = [t.detach().clone() for t in masters.tensors]
    for _, tensor in masters.gather(masters.tensors):
        tensor.fill_(3.0)
    assert all(torch.equal(a, b) for a, b in zip(masters.tensors, before, strict=True))


def test_set_weights_sets_masters_and_working_weights_and_steps_start_from_them(trainer):
    masters = trainer.training_step.masters
    start = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
    noise = random_values(trainer, 2)
    values = {name: tensor + 1e-3 * noise[name] for name, tensor in start.items()}
    masters.set_weights(values)
    assert equal({n: t.clone() for n, t in masters.gather(masters.tensors)}, values)  # not rounded to bf16
    assert all(torch.equal(p, values[n].to(p.dtype)) for n, p in trainable(trainer).items())

    assert trainer.train_step().read()["skipped"] == 0
    moved = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
    rate = masters.optimizer.param_groups[0]["lr"]
    assert rate > 0
    for name, parameter in trainable(trainer).items():
        change = (moved[name] - values[name]).abs().max()
        # AdamW's first step moves a weight by at most lr, and its decay by 0.01·lr of itself.
        assert change <= 1.1 * rate + 1e-7 * values[name].abs().max(), name
        assert torch.equal(parameter, moved[name].to(parameter.dtype)), MOVED + f"{name}: working weight and master"
    assert any((moved[name] != values[name]).any() for name in moved), MOVED + "a step moves other masters"


def test_adam_uses_the_state_of_the_adapter(trainer):
    masters = trainer.training_step.masters
    done = trainer.state.applied
    trainer.train_step()
    assert {int(masters.optimizer.state[t]["step"]) for t in masters.tensors} == {done + 1}, MOVED + "Adam's state"
    for name in ("exp_avg", "exp_avg_sq"):
        gathered = dict(masters.gather(masters.moments(name)))
        assert gathered.keys() == trainable(trainer).keys()
        assert gathered["mlm.bert.encoder.layer.1.attention.self.query.weight"].abs().max() > 0, MOVED + name
    masters.set_step(41)
    assert {int(masters.optimizer.state[t]["step"]) for t in masters.tensors} == {41}
    masters.set_step(done + 1)


def test_biases_and_layer_norm_are_not_decayed(trainer):
    decays = {}
    groups = trainer.training_step.masters.optimizer.param_groups
    of_tensor = [group for group in groups for _ in group["params"]]
    if trainer.training_step.masters.stage == 3:
        of_tensor = [
            groups[group] for _, group in sorted(trainer.training_step.engine.optimizer.sub_group_to_group_id.items())
        ]
    for group, ranks in zip(of_tensor, trainer.training_step.masters.pieces, strict=True):
        decays |= {piece.name: group["weight_decay"] for rank in ranks for piece in rank}
    assert decays.keys() == trainable(trainer).keys()
    for name, decay in decays.items():
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name


def test_tensors_are_gathered_in_slices(trainer, monkeypatch):
    """The buffer size does not change the result, even if slices end within parameters."""
    masters, values = trainer.training_step.masters, random_values(trainer, 3)
    scratch = [torch.zeros_like(t.detach()) for t in masters.tensors]
    masters.scatter(scratch, values)
    monkeypatch.setattr("ppa_fast.training.zero.BUFFER", 1000)
    assert max(map(len, masters._fragments(scratch))) < len(values) or masters.stage == 0
    assert equal(dict(masters.gather(scratch)), values)
    copies = {name: torch.full(p.shape, torch.nan, dtype=torch.bfloat16) for name, p in values.items()}
    masters.copy_to(scratch, copies)
    assert equal(copies, {name: p.to(torch.bfloat16) for name, p in values.items()})


def test_the_anchor_applies_to_the_model_but_not_to_the_projection(trainer):
    masters, values = trainer.training_step.masters, random_values(trainer, 4)
    start = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
    masters.anchor(values, 0.5)
    for views, targets in masters.optimizer.anchors.values():
        torch._foreach_lerp_(views, targets, 1.0)
    pulled = dict(masters.gather(masters.tensors))
    masters.optimizer.anchors.clear()
    masters.set_weights(start)
    for name, tensor in pulled.items():
        assert torch.equal(tensor, (start if name.startswith("projection.") else values)[name]), name
    assert any(name.startswith("projection.") for name in start)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_reach_adam_unrounded(tiny, tmp_path, monkeypatch, stage):
    """The sums of two micro-batches' gradients are not representable in bf16. Clipping is off, because it would hide
    rounding."""
    config = write_config(tmp_path / "ds.json", 16, 8, stage, bf16=True)
    values = json.loads(config.read_text(encoding="utf-8")) | {"gradient_clipping": 0.0}
    config.write_text(json.dumps(values), encoding="utf-8")
    job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(tmp_path / "run"), "queue_size": 40}
    step, seen = AdamW.step, []

    def look(self):
        seen.extend(p.grad.detach().clone() for group in self.param_groups for p in group["params"])
        step(self)

    monkeypatch.setattr(AdamW, "step", look)
    with trainer_here({**job, "deepspeed_config": str(config), "steps": 9}) as trainer:
        trainer.train_step().read()
    assert seen
    for gradient in seen:
        assert gradient.dtype == torch.float32
        assert (gradient != gradient.bfloat16().float()).float().mean() > 0.1


def test_a_run_is_anchored_to_its_base_model(tiny, tmp_path):
    """Weights that differ from it by 1 move back by lr·λ of that; the gradient of the step moves them by lr."""
    config = write_config(tmp_path / "ds.json", 16, 8, stage=1)
    job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(tmp_path / "run"), "queue_size": 40}
    job |= {"deepspeed_config": str(config), "steps": 9, "anchor": 100.0, "learning_rate": 1e-3, "warmup": 0.0}
    with trainer_here({**job, "weight_decay": 0.0, "pooling": "mean"}) as trainer:
        masters = trainer.training_step.masters
        start = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
        masters.set_weights({name: tensor + 1 for name, tensor in start.items()})
        assert trainer.train_step().read()["skipped"] == 0
        for name, tensor in masters.gather(masters.tensors):
            left = 1.0 if name.startswith("projection.") else 0.9
            torch.testing.assert_close(tensor, start[name] + left, rtol=0, atol=1.01e-3)


def test_stage_3_evaluates_without_a_momentum_encoder(tiny, tmp_path):
    """Otherwise evaluations use its complete working copy."""
    for code, lines in pseudo_text(0, 170).items():
        (tmp_path / f"dev.{code}").write_text("\n".join(lines[150:]) + "\n", encoding="utf-8")
    records = []
    for stage in (0, 3):
        config = write_config(tmp_path / f"{stage}.json", 16, 8, stage)
        job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(tmp_path / f"run-{stage}")}
        job |= {"deepspeed_config": str(config), "steps": 2, "moco": False, "pooling": "mean"}
        run_here({**job, "eval_pairs": [f"en-de:{tmp_path}/dev.en,{tmp_path}/dev.de"]})
        records.append(read_lines(tmp_path / f"run-{stage}" / "evaluations.jsonl"))
    for one, other in zip(*records, strict=True):
        assert one["pairs"]["en-de"] == pytest.approx(other["pairs"]["en-de"], rel=1e-4)
    assert records[0][0]["pairs"] != records[0][1]["pairs"]
