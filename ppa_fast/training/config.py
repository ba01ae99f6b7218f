"""Reads the DeepSpeed file, checks that training supports it, and fills in defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppa_fast.errors import UserError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A completed DeepSpeed file. ``values`` is passed to ``deepspeed.initialize``; batch sizes are in pairs."""

    path: str
    values: dict[str, Any]
    batch: int
    micro_batch: int
    accumulation: int

    @property
    def dtype(self) -> torch.dtype:
        return next((PRECISIONS[name] for name in PRECISIONS if _enabled(self.values, name, self.path)), torch.float32)

    @property
    def names_precision(self) -> bool:
        """Whether the file has a precision block, enabled or not."""
        return any(name in self.values for name in (*PRECISIONS, "torch_autocast"))

    @property
    def stage(self) -> int:
        return int(self.values.get("zero_optimization", {}).get("stage", 0))


def _count(values: Mapping[str, Any], name: str, path: str | Path) -> int | None:
    value = values.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{path}: {name}: found {value!r}, expected a whole number above 0")
    return value


def _block(values: Mapping[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    block = values.get(name, {})
    if not isinstance(block, dict):
        raise UserError(f"{path}: {name}: found {block!r}, expected an object")
    return block


def _enabled(values: Mapping[str, Any], name: str, path: str | Path) -> bool:
    enabled = _block(values, name, path).get("enabled", False)
    if not isinstance(enabled, bool):
        raise UserError(f"{path}: {name}.enabled: found {enabled!r}, expected true or false")
    return enabled


def uses_cuda() -> bool:
    """Whether DeepSpeed will use a CUDA device; ``DS_ACCELERATOR=cpu`` prevents it."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def _check_precision(values: Mapping[str, Any], path: str | Path) -> None:
    """Raises UserError for a precision that training or this machine does not support."""
    if "bfloat16" in values:
        raise UserError(f"{path}: bfloat16: found the old name of the block, expected bf16; rename it")
    enabled = [name for name in PRECISIONS if _enabled(values, name, path)]
    if len(enabled) > 1:
        raise UserError(f"{path}: bf16, fp16: found both enabled, expected at most one; disable both for fp32")
    if "fp16" in enabled and not uses_cuda():
        raise UserError(f"{path}: fp16: found no CUDA device in use, expected one; use bf16, or disable both for fp32")
    # Without the check, non-finite gradients are applied. 16-bit masters or moments lose small updates to rounding.
    needed = {
        "bf16": {
            "check_grad_overflow": True,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "fp16": {"fp16_master_weights_and_grads": False},
    }
    for block, keys in needed.items():
        for name, value in keys.items():
            found = _block(values, block, path).get(name, value)
            if found is not value:
                raise UserError(f"{path}: {block}.{name}: found {found!r}, expected {str(value).lower()}; remove it")


def _check_zero(values: Mapping[str, Any], path: str | Path) -> None:
    """Raises UserError for a ZeRO stage, offloading or accumulation that training does not support."""
    zero = _block(values, "zero_optimization", path)
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage: found {stage!r}, expected 0, 1, 2 or 3")
    offload = _block(zero, "offload_optimizer", f"{path}: zero_optimization")
    device = offload.get("device", "none")
    if device not in ("none", "cpu"):
        raise UserError(
            f"{path}: zero_optimization.offload_optimizer.device: found {device!r}, expected 'cpu' or 'none'"
        )
    if device == "cpu" and stage < 2:
        raise UserError(f"{path}: zero_optimization.offload_optimizer: found stage {stage}, expected stage 2 or 3")
    if offload.get("ratio", 1.0) != 1.0:
        raise UserError(
            f"{path}: zero_optimization.offload_optimizer.ratio: found {offload['ratio']!r}, expected 1; "
            "partial offloading is not supported"
        )
    device = _block(zero, "offload_param", f"{path}: zero_optimization").get("device", "none")
    if device != "none":
        raise UserError(
            f"{path}: zero_optimization.offload_param.device: found {device!r}, expected 'none'; "
            "use stage 3, which partitions the weights over the ranks"
        )
    if zero.get("compute_grad_norm", True) is not True:  # steps are skipped by the norm
        found = zero["compute_grad_norm"]
        raise UserError(f"{path}: zero_optimization.compute_grad_norm: found {found!r}, expected true; remove the key")
    precision = next((name for name in PRECISIONS if _enabled(values, name, path)), "fp32")
    names = {"bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "float16"), "fp32": ("fp32", "float32")}[precision]
    accumulate = _block(values, "data_types", path).get("grad_accum_dtype")
    if stage == 0 and accumulate not in (None, *names):
        raise UserError(
            f"{path}: data_types.grad_accum_dtype: found {accumulate!r}, expected {precision}, because DeepSpeed "
            "accumulates in the training precision at stage 0; set zero_optimization.stage 1 or remove the key"
        )
    clipping = values.get("gradient_clipping", 0.0)
    if isinstance(clipping, bool) or not isinstance(clipping, (int, float)) or not 0 <= clipping < float("inf"):
        raise UserError(f"{path}: gradient_clipping: found {clipping!r}, expected a number, 0 (off) or more")


def read_config(path: str | Path, world_size: int, output: str | Path) -> DeepSpeedConfig:
    """Reads a DeepSpeed file and fills in defaults. ``output``: the default parent folder of TensorBoard's logs.

    Raises UserError for invalid JSON, values of a wrong type, blocks that belong to the settings, batch sizes that do
    not divide, and unsupported options: fp16 without CUDA, 16-bit masters, and any offloading except that of the
    optimizer to the CPU.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed_config: {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"deepspeed_config: {path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"deepspeed_config: {path}: found {type(values).__name__}, expected an object")
    owners = {
        "optimizer": "learning_rate, weight_decay and adam_…",
        "scheduler": "learning_rate, warmup and schedule",
    }
    for block, names in owners.items():
        if block in values:
            raise UserError(f"{path}: {block}: set this with the settings {names}; remove the block")
    batch = _count(values, "train_batch_size", path)
    if batch is None:
        raise UserError(f"{path}: train_batch_size: not given, expected the number of pairs per global step")
    micro = _count(values, "train_micro_batch_size_per_gpu", path) or batch // world_size
    if micro == 0:
        raise UserError(f"{path}: train_batch_size: found {batch}, expected at least {world_size}, one pair per rank")
    if batch % (micro * world_size):
        raise UserError(
            f"{path}: train_batch_size: found {batch}, expected a multiple of train_micro_batch_size_per_gpu {micro} × "
            f"{world_size} rank{'s' * (world_size > 1)}"
        )
    accumulation = batch // (micro * world_size)
    stated = _count(values, "gradient_accumulation_steps", path)
    if stated not in (None, accumulation):
        raise UserError(
            f"{path}: gradient_accumulation_steps: found {stated}, expected {accumulation} = "
            f"train_batch_size {batch} / ({micro} × {world_size} ranks); remove the key"
        )
    _check_precision(values, path)
    _check_zero(values, path)
    values["train_micro_batch_size_per_gpu"] = micro
    values["gradient_accumulation_steps"] = accumulation
    values.setdefault("zero_allow_untested_optimizer", True)  # a subclass of AdamW counts as untested
    values.setdefault("zero_force_ds_cpu_optimizer", False)  # use torch's fused CPU AdamW for an offloaded optimizer
    # otherwise DeepSpeed rounds gradients to 16 bits, even on one rank
    values.setdefault("communication_data_type", "fp32")
    values.setdefault("steps_per_print", 2**31)  # the trainer logs
    values.setdefault("timers", {"throughput": {"enabled": False}})  # it would synchronize twice per micro-batch
    if _enabled(values, "tensorboard", path):
        values["tensorboard"].setdefault("output_path", str(Path(output) / "tensorboard"))
        values["tensorboard"].setdefault("job_name", "train")
    return DeepSpeedConfig(str(path), values, batch, micro, accumulation)
