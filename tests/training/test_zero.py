"""DeepSpeed files, and the one adapter to DeepSpeed's internals: where the fp32 masters are and whose they are."""

from __future__ import annotations

import json

import deepspeed
import pytest
import torch

from ppa_fast.errors import UserError
from ppa_fast.training.zero import AdamW, read_config
from tests.training.harness import trainer_here

BATCH = {"train_batch_size": 16}
MOVED = f"DeepSpeed {deepspeed.__version__} has moved what ppa_fast/training/zero.py relies on (tried with 0.19.8): "


def config(tmp_path, values, world_size=1):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return read_config(path, world_size, tmp_path / "run")


# The file.


def test_batch_sizes_are_completed(tmp_path):
    read = config(tmp_path, {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4}, world_size=2)
    assert (read.batch, read.micro_batch, read.accumulation) == (24, 4, 3)
    assert read.values["gradient_accumulation_steps"] == 3
    assert (read.stage, read.dtype) == (0, torch.float32)
    whole = config(tmp_path, {"train_batch_size": 24}, world_size=2)
    assert (whole.micro_batch, whole.accumulation) == (12, 1)
    assert whole.values["train_micro_batch_size_per_gpu"] == 12
    stated = {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 6}
    assert config(tmp_path, stated).accumulation == 6


def test_stage_and_precision(tmp_path):
    read = config(tmp_path, {**BATCH, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}})
    assert (read.stage, read.dtype) == (1, torch.bfloat16)
    off = config(tmp_path, {**BATCH, "bf16": {"enabled": False}, "fp16": {"enabled": False}, "zero_optimization": {}})
    assert (off.stage, off.dtype) == (0, torch.float32)


def test_the_files_own_values_are_kept(tmp_path):
    values = {**BATCH, "gradient_clipping": 0.5, "steps_per_print": 7, "csv_monitor": {"enabled": False}}
    assert {**values, **config(tmp_path, values).values} == config(tmp_path, values).values


def test_tensorboard_writes_to_the_run_unless_told_otherwise(tmp_path):
    block = config(tmp_path, {**BATCH, "tensorboard": {"enabled": True}}).values["tensorboard"]
    assert block == {"enabled": True, "output_path": str(tmp_path / "run" / "tensorboard"), "job_name": "train"}
    own = {"enabled": True, "output_path": "elsewhere", "job_name": "mine"}
    assert config(tmp_path, {**BATCH, "tensorboard": own}).values["tensorboard"] == own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{'train_batch_size': 16}", "not JSON"),
        (b'{"train_batch_size": 16 /* pairs */}', "not JSON"),
        (b'{"train_batch_size": "\xff"}', "not JSON"),
        (b"[]", "found list, expected an object"),
        (b"16", "found int, expected an object"),
        (b"null", "found NoneType, expected an object"),
    ],
)
def test_what_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^deepspeed_config: .*ds\.json: {message}"):
        read_config(path, 1, tmp_path)


def test_an_absent_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"^deepspeed_config: .*absent\.json: No such file"):
        read_config(tmp_path / "absent.json", 1, tmp_path)
    with pytest.raises(UserError, match=r"^deepspeed_config: .*: Is a directory"):
        read_config(tmp_path, 1, tmp_path)


@pytest.mark.parametrize(
    ("block", "settings"),
    [("optimizer", ["learning_rate", "weight_decay", "adam_"]), ("scheduler", ["learning_rate", "warmup", "schedule"])],
)
@pytest.mark.parametrize("content", [{"type": "AdamW", "params": {"lr": 1e-3}}, {}, None])
def test_blocks_of_the_settings_are_errors_that_name_them(tmp_path, block, settings, content):
    with pytest.raises(UserError, match=rf"ds\.json: {block}: ") as caught:
        config(tmp_path, {**BATCH, block: content})
    assert all(name in str(caught.value) for name in settings)


@pytest.mark.parametrize("name", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [True, False, 0, -16, 16.0, "16", "auto", [16], {}])
def test_counts_are_whole_numbers_above_0(tmp_path, name, value):
    with pytest.raises(UserError, match=rf"ds\.json: {name}: found .*, expected a whole number above 0"):
        config(tmp_path, {**BATCH, name: value})


@pytest.mark.parametrize("values", [{}, {"train_batch_size": None}, {"train_micro_batch_size_per_gpu": 8}])
def test_the_global_batch_must_be_stated(tmp_path, values):
    with pytest.raises(UserError, match="train_batch_size is missing"):
        config(tmp_path, values)


@pytest.mark.parametrize(
    ("batch", "micro", "world"), [(16, 5, 1), (16, 32, 1), (16, 8, 3), (16, None, 3), (2, None, 4), (6, 2, 2)]
)
def test_a_batch_that_does_not_divide(tmp_path, batch, micro, world):
    values = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro}
    with pytest.raises(UserError, match=f"train_batch_size {batch} is not a multiple of .* × {world} rank"):
        config(tmp_path, values, world)


def test_accumulation_follows_and_may_not_contradict(tmp_path):
    values = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}
    with pytest.raises(UserError, match="gradient_accumulation_steps: found 4, expected 2"):
        config(tmp_path, values, world_size=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fp16": {"enabled": True}}, "fp16 is not supported"),
        ({"fp16": True}, "fp16: found True, expected an object"),
        ({"fp16": {"enabled": "auto"}}, "fp16.enabled: found 'auto', expected true or false"),
        ({"bf16": True}, "bf16: found True, expected an object"),
        ({"bf16": None}, "bf16: found None, expected an object"),
        ({"bf16": {"enabled": "false"}}, "bf16.enabled: found 'false', expected true or false"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled: found 1, expected true or false"),
        ({"bfloat16": {"enabled": True}}, "bfloat16: .* expected bf16"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "bf16.check_grad_overflow: found False"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "bf16.bf16_master_weights_and_grads: found True"),
        ({"zero_optimization": []}, r"zero_optimization: found \[\], expected an object"),
        ({"zero_optimization": True}, "zero_optimization: found True, expected an object"),
        ({"zero_optimization": {"stage": 2}}, r"zero_optimization\.stage: found 2, expected 0 or 1"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage: found 3, expected 0 or 1"),
        ({"zero_optimization": {"stage": -1}}, r"zero_optimization\.stage: found -1"),
        ({"zero_optimization": {"stage": True}}, r"zero_optimization\.stage: found True"),
        ({"zero_optimization": {"stage": 1.0}}, r"zero_optimization\.stage: found 1\.0"),
        ({"zero_optimization": {"stage": "1"}}, r"zero_optimization\.stage: found '1'"),
        ({"zero_optimization": {"stage": None}}, r"zero_optimization\.stage: found None"),
        ({"zero_optimization": {"stage": [1]}}, r"zero_optimization\.stage: found \[1\]"),
        ({"tensorboard": True}, "tensorboard: found True, expected an object"),
        ({"tensorboard": {"enabled": "yes"}}, "tensorboard.enabled: found 'yes', expected true or false"),
        ({"data_types": "fp32"}, "data_types: found 'fp32', expected an object"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}, "grad_accum_dtype: .*stage 1"),
        ({"gradient_clipping": "1.0"}, "gradient_clipping: found '1.0', expected a number"),
        ({"gradient_clipping": True}, "gradient_clipping: found True, expected a number"),
        ({"gradient_clipping": -1}, "gradient_clipping: found -1, expected a number, 0"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping: found nan, expected a number"),
        ({"gradient_clipping": None}, "gradient_clipping: found None, expected a number"),
    ],
)
def test_what_the_loop_cannot_run_with(tmp_path, values, message):
    with pytest.raises(UserError, match=rf"ds\.json: .*{message}"):
        config(tmp_path, {**BATCH, **values})


# The masters.

LAYOUTS = {  # blocks of the DeepSpeed file, DeepSpeed's class around the optimizer
    "fp32": ({}, "AdamW"),
    "zero1": ({"zero_optimization": {"stage": 1}}, "DeepSpeedZeroOptimizer"),
    "bf16": ({"bf16": {"enabled": True}}, "FP16_UnfusedOptimizer"),
    "zero1-bf16": (
        {
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1},
            "data_types": {"grad_accum_dtype": "fp32"},
        },
        "BF16_Optimizer",
    ),
    "zero1-bf16-sums-in-bf16": (
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
        "DeepSpeedZeroOptimizer",
    ),
}


@pytest.fixture(params=list(LAYOUTS), scope="module")
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory, layout):
    folder = tmp_path_factory.mktemp("zero")
    values = {**BATCH, "train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1.0, **LAYOUTS[layout][0]}
    (folder / "ds.json").write_text(json.dumps(values))
    job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(folder / "run"), "pooling": "mean"}
    # Without TLM the LM head's own weights are frozen: names must be those of the trainable ones alone.
    job |= {"deepspeed_config": str(folder / "ds.json"), "steps": 9, "queue_size": 40, "tlm": False}
    with trainer_here(job) as trainer:
        yield trainer


def trainable(trainer) -> dict[str, torch.Tensor]:
    return {name: p for name, p in trainer.engine.module.named_parameters() if p.requires_grad}


def random_values(trainer, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in trainable(trainer).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_deepspeed_is_built_as_the_adapter_expects(trainer, layout):
    """Fails first, and says so, where a new DeepSpeed keeps the masters elsewhere."""
    engine, masters = trainer.engine, trainer.masters
    assert type(engine.optimizer).__name__ == LAYOUTS[layout][1], MOVED + "the class around the optimizer"
    assert isinstance(engine.basic_optimizer, AdamW), MOVED + "engine.basic_optimizer is not the client's"
    assert all(t.dtype == torch.float32 for t in masters.tensors), MOVED + "param_groups do not hold fp32 masters"
    expected = torch.bfloat16 if "bf16" in layout else torch.float32
    assert {p.dtype for p in trainable(trainer).values()} == {expected}, MOVED + "the working precision"
    if layout == "bf16":
        kept = [id(t) for group in engine.optimizer.fp32_groups for t in group]
        assert kept == [id(t) for t in masters.tensors], MOVED + "FP16_UnfusedOptimizer.fp32_groups"
    if "zero1" in layout:
        assert len(masters.tensors) == len(engine.optimizer.param_groups), MOVED + "one flat partition a group"
        for name, parameter in trainable(trainer).items():
            mapping = getattr(parameter, "_hp_mapping", None)
            assert mapping is not None, MOVED + f"_hp_mapping of {name}"
            size = mapping.lp_fragment_address.numel
            assert size == mapping.hp_fragment_address.numel == parameter.numel(), MOVED + "fragment addresses"
    else:
        assert len(masters.tensors) == len(trainable(trainer)), MOVED + "one master a parameter"


def test_pieces_cover_every_element_once(trainer):
    parameters = trainable(trainer)
    seen = {name: torch.zeros(p.numel(), dtype=torch.int64) for name, p in parameters.items()}
    for tensor, ranks in zip(trainer.masters.tensors, trainer.masters.pieces, strict=True):
        assert len(ranks) == 1  # one rank holds all
        taken = torch.zeros(tensor.numel(), dtype=torch.int64)
        for piece in ranks[0]:
            assert piece.length > 0
            seen[piece.name][piece.start : piece.start + piece.length] += 1
            taken[piece.offset : piece.offset + piece.length] += 1
        assert taken.max() == 1
    assert all((count == 1).all() for count in seen.values())


def test_gather_gives_exactly_the_trainable_parameters_whole(trainer):
    gathered = list(trainer.masters.gather(trainer.masters.tensors))
    names = [name for name, _ in gathered]
    parameters = trainable(trainer)
    assert sorted(names) == sorted(parameters)
    assert len(set(names)) == len(names)
    assert all(tensor.shape == parameters[name].shape for name, tensor in gathered)
    frozen = set(dict(trainer.engine.module.named_parameters())) - set(names)
    assert frozen == set(trainer.frozen)
    assert all(name.startswith("mlm.cls.") for name in frozen)
    assert frozen


def test_scatter_then_gather_is_the_identity(trainer):
    masters, values = trainer.masters, random_values(trainer, 1)
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
    masters = trainer.masters
    before = [t.detach().clone() for t in masters.tensors]
    for _, tensor in masters.gather(masters.tensors):
        tensor.fill_(3.0)
    assert all(torch.equal(a, b) for a, b in zip(masters.tensors, before, strict=True))


def test_set_weights_sets_masters_and_working_weights_and_steps_start_from_them(trainer):
    masters = trainer.masters
    start = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
    noise = random_values(trainer, 2)
    values = {name: tensor + 1e-3 * noise[name] for name, tensor in start.items()}
    masters.set_weights(values)
    assert equal({n: t.clone() for n, t in masters.gather(masters.tensors)}, values)  # not rounded to bf16
    assert all(torch.equal(p, values[n].to(p.dtype)) for n, p in trainable(trainer).items())

    assert trainer.train_step()["skipped"] == 0
    moved = {name: tensor.clone() for name, tensor in masters.gather(masters.tensors)}
    rate = masters.optimizer.param_groups[0]["lr"]
    assert rate > 0
    for name, parameter in trainable(trainer).items():
        change = (moved[name] - values[name]).abs().max()
        # AdamW's first step moves a weight by at most lr, and its decay by 0.01·lr of itself.
        assert change <= 1.1 * rate + 1e-7 * values[name].abs().max(), name
        assert torch.equal(parameter, moved[name].to(parameter.dtype)), MOVED + f"{name}: working weight and master"
    assert any((moved[name] != values[name]).any() for name in moved), MOVED + "a step moves other masters"


def test_adam_uses_the_state_that_the_adapter_made(trainer):
    masters = trainer.masters
    done = trainer.applied
    trainer.train_step()
    assert {int(masters.optimizer.state[t]["step"]) for t in masters.tensors} == {done + 1}, MOVED + "Adam's state"
    for name in ("exp_avg", "exp_avg_sq"):
        gathered = dict(masters.gather(masters.moments(name)))
        assert gathered.keys() == trainable(trainer).keys()
        assert gathered["mlm.bert.encoder.layer.0.attention.self.query.weight"].abs().max() > 0, MOVED + name
    masters.set_step(41)
    assert {int(masters.optimizer.state[t]["step"]) for t in masters.tensors} == {41}
    masters.set_step(done + 1)


def test_biases_and_layer_norm_are_not_decayed(trainer):
    decays = {}
    tensors = iter(trainer.masters.pieces)
    for group in trainer.masters.optimizer.param_groups:
        for _ in group["params"]:
            decays |= {piece.name: group["weight_decay"] for rank in next(tensors) for piece in rank}
    assert decays.keys() == trainable(trainer).keys()
    for name, decay in decays.items():
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name
