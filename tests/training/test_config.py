"""The DeepSpeed file: completed values and errors."""

from __future__ import annotations

import json

import pytest
import torch

from ppa_fast.errors import UserError
from ppa_fast.training.config import read_config

BATCH = {"train_batch_size": 16}


def config(tmp_path, values, world_size=1):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return read_config(path, world_size, tmp_path / "run")


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


def test_stage_and_precision_are_read(tmp_path):
    read = config(tmp_path, {**BATCH, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}})
    assert (read.stage, read.dtype) == (1, torch.bfloat16)
    off = config(tmp_path, {**BATCH, "bf16": {"enabled": False}, "fp16": {"enabled": False}, "zero_optimization": {}})
    assert (off.stage, off.dtype) == (0, torch.float32)


def test_gradients_are_communicated_in_fp32_by_default(tmp_path):
    assert config(tmp_path, BATCH).values["communication_data_type"] == "fp32"
    stated = config(tmp_path, {**BATCH, "communication_data_type": "bf16"})
    assert stated.values["communication_data_type"] == "bf16"


def test_values_of_the_file_are_kept(tmp_path):
    values = {**BATCH, "gradient_clipping": 0.5, "steps_per_print": 7, "csv_monitor": {"enabled": False}}
    assert {**values, **config(tmp_path, values).values} == config(tmp_path, values).values


def test_tensorboard_writes_to_the_run_folder_by_default(tmp_path):
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
def test_an_invalid_json_object_is_an_error(tmp_path, content, message):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^deepspeed_config: .*ds\.json: {message}"):
        read_config(path, 1, tmp_path)


def test_a_missing_file_and_a_folder_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"^deepspeed_config: .*absent\.json: No such file"):
        read_config(tmp_path / "absent.json", 1, tmp_path)
    with pytest.raises(UserError, match=r"^deepspeed_config: .*: Is a directory"):
        read_config(tmp_path, 1, tmp_path)


@pytest.mark.parametrize(
    ("block", "settings"),
    [("optimizer", ["learning_rate", "weight_decay", "adam_"]), ("scheduler", ["learning_rate", "warmup", "schedule"])],
)
@pytest.mark.parametrize("content", [{"type": "AdamW", "params": {"lr": 1e-3}}, {}, None])
def test_blocks_that_duplicate_settings_are_named(tmp_path, block, settings, content):
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
    with pytest.raises(UserError, match="train_batch_size: not given, expected the number of pairs"):
        config(tmp_path, values)


@pytest.mark.parametrize(("batch", "micro", "world"), [(16, 5, 1), (16, 32, 1), (16, 8, 3), (16, None, 3), (6, 2, 2)])
def test_an_indivisible_batch_is_an_error(tmp_path, batch, micro, world):
    values = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro}
    with pytest.raises(UserError, match=f"train_batch_size: found {batch}, expected a multiple of .* × {world} rank"):
        config(tmp_path, values, world)


def test_a_batch_of_fewer_pairs_than_ranks_is_an_error(tmp_path):
    with pytest.raises(UserError, match="train_batch_size: found 2, expected at least 4, one pair per rank"):
        config(tmp_path, {"train_batch_size": 2}, 4)


def test_accumulation_is_derived_and_must_not_contradict(tmp_path):
    values = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}
    with pytest.raises(UserError, match="gradient_accumulation_steps: found 4, expected 2"):
        config(tmp_path, values, world_size=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fp16": {"enabled": True}}, "fp16: found no CUDA device in use, expected one"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "bf16, fp16: found both enabled, expected at most"),
        ({"fp16": {"fp16_master_weights_and_grads": True}}, "fp16.fp16_master_weights_and_grads: found True"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states: found True"),
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
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization\.stage: found 4, expected 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": -1}}, r"zero_optimization\.stage: found -1"),
        ({"zero_optimization": {"stage": True}}, r"zero_optimization\.stage: found True"),
        ({"zero_optimization": {"stage": 1.0}}, r"zero_optimization\.stage: found 1\.0"),
        ({"zero_optimization": {"stage": "1"}}, r"zero_optimization\.stage: found '1'"),
        ({"zero_optimization": {"stage": None}}, r"zero_optimization\.stage: found None"),
        ({"zero_optimization": {"stage": [1]}}, r"zero_optimization\.stage: found \[1\]"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}},
            "offload_optimizer: found 'cpu', expected an obj",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}},
            "offload_optimizer.device: found 'nvme', expected 'cpu' or 'none'",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer: found stage 1, expected stage 2 or 3",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            r"offload_optimizer\.ratio: found 0\.5, expected 1",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            "offload_param.device: found 'cpu', expected 'none'",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offload_param.device: found 'nvme', expected 'none'",
        ),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "compute_grad_norm: found False"),
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
def test_unsupported_options_are_an_error(tmp_path, values, message):
    with pytest.raises(UserError, match=rf"ds\.json: .*{message}"):
        config(tmp_path, {**BATCH, **values})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp16_needs_cuda(tmp_path, monkeypatch, stage):
    monkeypatch.setattr("ppa_fast.training.config.uses_cuda", lambda: True)
    read = config(tmp_path, {**BATCH, "fp16": {"enabled": True}, "zero_optimization": {"stage": stage}})
    assert (read.stage, read.dtype) == (stage, torch.float16)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_is_allowed(tmp_path, stage):
    """By default DeepSpeed refuses any optimizer but its own."""
    offload = {"stage": stage, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    read = config(tmp_path, {**BATCH, "zero_optimization": offload})
    assert read.values["zero_force_ds_cpu_optimizer"] is False
