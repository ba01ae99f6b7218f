"""The only file that knows DeepSpeed's internals: where the fp32 masters of the trained weights live.

Tried with DeepSpeed 0.19.8. Whatever the stage and precision, the base optimizer's ``param_groups`` hold this rank's
fp32 masters: the parameters themselves (stage 0, fp32), a copy of each (stage 0, bf16), or one flat partition a group
(stage 1), of which every parameter's ``_hp_mapping`` says which stretch is whose. A new DeepSpeed that moves any of it
fails ``tests/training/test_zero.py`` first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppa_fast.errors import UserError


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A DeepSpeed file as the run uses it. ``values`` is what ``deepspeed.initialize`` gets."""

    path: str
    values: dict[str, Any]
    batch: int
    micro_batch: int
    accumulation: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if _enabled(self.values, "bf16", self.path) else torch.float32

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


def _check_supported(values: Mapping[str, Any], path: str | Path) -> None:
    """Raises UserError for a precision, ZeRO stage or clipping that the loop cannot run with."""
    if _enabled(values, "fp16", path):
        raise UserError(f"{path}: fp16 is not supported; expected bf16 or neither (fp32)")
    if "bfloat16" in values:
        raise UserError(f"{path}: bfloat16: this old name is not read; expected bf16")
    # Without the check a gradient that is not finite is applied; masters in bf16 are none.
    for name, needed in (("check_grad_overflow", True), ("bf16_master_weights_and_grads", False)):
        found = _block(values, "bf16", path).get(name, needed)
        if found is not needed:
            raise UserError(f"{path}: bf16.{name}: found {found!r}, expected {str(needed).lower()}; leave it out")
    stage = _block(values, "zero_optimization", path).get("stage", 0)
    if type(stage) is not int or stage not in (0, 1):
        raise UserError(f"{path}: zero_optimization.stage: found {stage!r}, expected 0 or 1")
    accumulate = _block(values, "data_types", path).get("grad_accum_dtype")
    precision = ("bf16", "bfloat16") if _enabled(values, "bf16", path) else ("fp32", "float32")
    if stage == 0 and accumulate not in (None, *precision):
        raise UserError(
            f"{path}: data_types.grad_accum_dtype: found {accumulate!r}, but at stage 0 DeepSpeed accumulates in the "
            f"training precision, {precision[0]}; expected zero_optimization.stage 1, or no grad_accum_dtype"
        )
    clipping = values.get("gradient_clipping", 0.0)
    if isinstance(clipping, bool) or not isinstance(clipping, (int, float)) or not 0 <= clipping < float("inf"):
        raise UserError(f"{path}: gradient_clipping: found {clipping!r}, expected a number, 0 (off) or more")


def read_config(path: str | Path, world_size: int, output: str | Path) -> DeepSpeedConfig:
    """Reads and completes a DeepSpeed file; ``output`` is where TensorBoard writes if the file names no place.

    Raises UserError for a file that is no JSON, values of a wrong type, blocks that belong to the settings, batch sizes
    that do not divide, and what is not supported: ZeRO stages above 1, fp16, bf16 without fp32 masters.
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
            raise UserError(f"{path}: {block}: the settings {names} own this; remove the block")
    batch = _count(values, "train_batch_size", path)
    if batch is None:
        raise UserError(f"{path}: train_batch_size is missing; expected the pairs of a global step")
    micro = _count(values, "train_micro_batch_size_per_gpu", path) or batch // world_size
    if micro == 0 or batch % (micro * world_size):
        raise UserError(
            f"{path}: train_batch_size {batch} is not a multiple of train_micro_batch_size_per_gpu {micro} × "
            f"{world_size} rank{'s' * (world_size > 1)}"
        )
    accumulation = batch // (micro * world_size)
    stated = _count(values, "gradient_accumulation_steps", path)
    if stated not in (None, accumulation):
        raise UserError(
            f"{path}: gradient_accumulation_steps: found {stated}, expected {accumulation} = "
            f"train_batch_size {batch} / ({micro} × {world_size} ranks); leave it out"
        )
    _check_supported(values, path)
    values["train_micro_batch_size_per_gpu"] = micro
    values["gradient_accumulation_steps"] = accumulation
    values.setdefault("zero_allow_untested_optimizer", True)  # a subclass of AdamW counts as untested
    values.setdefault("steps_per_print", 2**31)  # the loop reports
    if _enabled(values, "tensorboard", path):
        values["tensorboard"].setdefault("output_path", str(Path(output) / "tensorboard"))
        values["tensorboard"].setdefault("job_name", "train")
    return DeepSpeedConfig(str(path), values, batch, micro, accumulation)


class AdamW(torch.optim.AdamW):
    """AdamW that can sit out a step. Its state exists from the start, so that a first step can be skipped or loaded."""

    skip = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if not self.skip:
            super().step(closure)


def optimizer_for(model: nn.Module, decay: float, lr: float, betas: tuple[float, float], epsilon: float) -> AdamW:
    """AdamW (fused) over the trainable parameters; no weight decay on biases and LayerNorm (all that is 1-D)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=epsilon, fused=True)


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + length) of parameter ``name``, at ``offset`` of a rank's master tensor."""

    name: str
    start: int
    offset: int
    length: int


class ZeroMasters:
    """The fp32 masters of an engine's trained weights, by parameter name, whatever the ZeRO stage and precision.

    ``tensors``: this rank's masters. Any list of tensors of their shapes (Adam's moments, the momentum encoder) has the
    same layout, and goes through the same ``gather`` and ``scatter``.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.optimizer: AdamW = engine.basic_optimizer
        self.tensors: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
        self.sharded = engine.zero_optimization()
        self.pieces = self._pieces()
        for tensor in self.tensors:
            self.optimizer.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                "exp_avg": torch.zeros_like(tensor.detach()),
                "exp_avg_sq": torch.zeros_like(tensor.detach()),
            }

    def _pieces(self) -> list[list[list[Piece]]]:
        """For each master tensor, for each rank that holds a part of it, the pieces of parameters in it."""
        if not self.sharded:
            names = {id(p): n for n, p in self.parameters.items()}
            wrapper = self.engine.optimizer
            groups = [self.tensors] if wrapper is self.optimizer else wrapper.fp16_groups
            sources = [parameter for group in groups for parameter in group]
            return [[[Piece(names[id(p)], 0, 0, p.numel())]] for p in sources]
        mine: list[list[Piece]] = [[] for _ in self.tensors]
        for name, parameter in self.parameters.items():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: all of it lies on other ranks
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                mine[mapping.param_group_index].append(Piece(name, low.start, high.start, high.numel))
        everyone: list[list[list[Piece]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        return [[rank[i] for rank in everyone] for i in range(len(self.tensors))]

    @torch.no_grad()
    def gather(self, tensors: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by parameter name, on every rank: one all-gather for each master tensor that is sharded."""
        whole: dict[str, tuple[Tensor, int]] = {}
        for tensor, ranks in zip(tensors, self.pieces, strict=True):
            local = tensor.detach().reshape(-1)
            parts = [local]
            if len(ranks) > 1:
                flat = local.new_empty(len(ranks) * len(local))
                dist.all_gather_into_tensor(flat, local.contiguous())
                parts = list(flat.chunk(len(ranks)))
            for part, pieces in zip(parts, ranks, strict=True):
                for piece in pieces:
                    shape = self.parameters[piece.name].shape
                    full, seen = whole.pop(piece.name, (None, 0))
                    full = part.new_empty(shape.numel()) if full is None else full
                    full[piece.start : piece.start + piece.length] = part[piece.offset : piece.offset + piece.length]
                    if seen + piece.length == shape.numel():
                        yield piece.name, full.view(shape)
                    else:
                        whole[piece.name] = (full, seen + piece.length)

    @torch.no_grad()
    def scatter(self, tensors: list[Tensor], full: Mapping[str, Tensor]) -> None:
        """Writes this rank's part of whole tensors by name into ``tensors``: the inverse of :meth:`gather`."""
        rank = dist.get_rank() if self.sharded else 0
        for tensor, ranks in zip(tensors, self.pieces, strict=True):
            flat = tensor.detach().view(-1)
            for piece in ranks[rank]:
                source = full[piece.name].reshape(-1)[piece.start : piece.start + piece.length]
                flat[piece.offset : piece.offset + piece.length] = source.to(flat.device)

    def moments(self, name: str) -> list[Tensor]:
        """Adam's ``exp_avg`` or ``exp_avg_sq`` in the masters' layout."""
        return [self.optimizer.state[tensor][name] for tensor in self.tensors]

    def set_step(self, step: int) -> None:
        """Sets Adam's count of applied steps."""
        for tensor in self.tensors:
            self.optimizer.state[tensor]["step"].fill_(step)

    @torch.no_grad()
    def set_weights(self, full: Mapping[str, Tensor]) -> None:
        """Sets the masters and the working weights: DeepSpeed would start from masters rounded to bf16."""
        self.scatter(self.tensors, full)
        for name, parameter in self.parameters.items():
            parameter.copy_(full[name])

    def step(self, lr: float, skip: bool) -> tuple[bool, float]:
        """The engine's optimizer step at the end of a global step.

        With ``skip``, or when the gradient norm is not finite, nothing moves: DeepSpeed sees to that where it wraps the
        optimizer, and this does where it does not (stage 0, fp32).

        Returns:
            Whether the step was applied, and the gradient's norm before clipping.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        wrapped = self.engine.optimizer is not self.optimizer
        norm = float("nan")
        if not wrapped:
            gradients = [p.grad for p in self.tensors if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            skip = skip or not math.isfinite(norm)
        self.optimizer.skip = skip
        self.engine.step()
        if wrapped:
            norm = float(self.engine.get_global_grad_norm())
            skip = skip or bool(self.engine.optimizer.overflow)
        return not skip, norm
