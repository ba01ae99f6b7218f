"""The only file that knows DeepSpeed's internals: where the fp32 masters of the trained weights live.

Tried with DeepSpeed 0.19.8. Up to stage 2, whatever the precision, the base optimizer's ``param_groups`` hold this
rank's fp32 masters: the parameters themselves (stage 0, fp32), a copy of each (stage 0, bf16 and fp16), or one flat
partition a group (stages 1 and 2), of which every parameter's ``_hp_mapping`` says which stretch is whose. At stage 3
they are ``fp32_partitioned_groups_flat``, one for each of ``fp16_groups``: every parameter is cut into as many equal
parts as there are ranks, and a rank's parts lie one after another. A new DeepSpeed that moves any of it fails
``tests/training/test_zero.py`` first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.training.optimizer import AdamW

BUFFER = 2**26  # elements gathered at once, over all ranks: 256 MiB in fp32
SCALER = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}  # the last only under ZeRO


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + length) of parameter ``name``, at ``offset`` of a rank's master tensor."""

    name: str
    start: int
    offset: int
    length: int


class ZeroMasters:
    """The fp32 masters of an engine's trained weights, by parameter name, whatever the ZeRO stage and precision.

    ``tensors``: this rank's masters, on the device or, with an offloaded optimizer, on the CPU. Any list of tensors of
    their shapes (Adam's moments, the momentum encoder) has the same layout, and goes through the same ``gather``,
    ``copy_to`` and ``scatter``. ``shapes``: of the whole parameters, which at stage 3 no rank holds.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.optimizer: AdamW = engine.basic_optimizer
        self.stage: int = engine.zero_optimization_stage()
        self.tensors: list[Tensor] = (
            engine.optimizer.fp32_partitioned_groups_flat
            if self.stage == 3
            else [p for group in self.optimizer.param_groups for p in group["params"]]
        )
        self.parameters = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
        self.shapes = {n: torch.Size(getattr(p, "ds_shape", p.shape)) for n, p in self.parameters.items()}
        self.rank = dist.get_rank() if self.stage else 0  # of the ranks in ``pieces``
        self.pieces = (self._copied, self._flat, self._flat, self._cut)[self.stage]()
        for tensor in self.tensors:
            self.optimizer.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                "exp_avg": torch.zeros_like(tensor.detach()),
                "exp_avg_sq": torch.zeros_like(tensor.detach()),
            }

    # For each master tensor, for each rank that holds a part of it, the pieces of parameters in it.

    def _copied(self) -> list[list[list[Piece]]]:
        """Stage 0: a master for each parameter."""
        names = {id(p): n for n, p in self.parameters.items()}
        wrapper = self.engine.optimizer
        groups = [self.tensors] if wrapper is self.optimizer else wrapper.fp16_groups
        return [[[Piece(names[id(p)], 0, 0, p.numel())]] for group in groups for p in group]

    def _flat(self) -> list[list[list[Piece]]]:
        """Stages 1 and 2: a group's parameters one after another, cut between ranks anywhere."""
        mine: list[list[Piece]] = [[] for _ in self.tensors]
        for name, parameter in self.parameters.items():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: all of it lies on other ranks
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                mine[mapping.param_group_index].append(Piece(name, low.start, high.start, high.numel))
        everyone: list[list[list[Piece]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        return [[rank[i] for rank in everyone] for i in range(len(self.tensors))]

    def _cut(self) -> list[list[list[Piece]]]:
        """Stage 3: an equal part of each parameter, the last ones padded, on every rank."""
        names = {id(p): n for n, p in self.parameters.items()}
        pieces: list[list[list[Piece]]] = []
        for group in self.engine.optimizer.fp16_groups:
            pieces.append([[] for _ in range(dist.get_world_size())])
            offset = 0
            for parameter in group:
                part = parameter.partition_numel()
                for rank, parts in enumerate(pieces[-1]):
                    length = min(part, parameter.ds_numel - rank * part)
                    if length > 0:
                        parts.append(Piece(names[id(parameter)], rank * part, offset, length))
                offset += part
        return pieces

    # Whole tensors.

    @torch.no_grad()
    def _fragments(self, tensors: list[Tensor]) -> Iterator[list[tuple[str, int, Tensor]]]:
        """Parts of whole parameters, (name, first element, values), on the device, after an all-gather for each list.
        Every rank gets all of them, and must ask for all of them."""
        for tensor, ranks in zip(tensors, self.pieces, strict=True):
            flat, step = tensor.detach().reshape(-1), BUFFER // len(ranks)
            for low in range(0, len(flat), step):
                part = flat[low : low + step].to(self.engine.device, non_blocking=True)
                parts = part
                if len(ranks) > 1:
                    parts = part.new_empty(len(ranks) * len(part))
                    dist.all_gather_into_tensor(parts, part)
                fragments = []
                for values, pieces in zip(parts.view(len(ranks), -1), ranks, strict=True):
                    for piece in pieces:
                        first = max(piece.offset, low)
                        last = min(piece.offset + piece.length, low + len(part))
                        if first < last:
                            start = piece.start + first - piece.offset
                            fragments.append((piece.name, start, values[first - low : last - low]))
                yield fragments

    @torch.no_grad()
    def gather(self, tensors: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by parameter name, one after another, on every rank's device; all ranks must take them all.

        About ``BUFFER`` elements are held at a time, whatever the size of the model.
        """
        whole: dict[str, tuple[Tensor, int]] = {}
        for fragments in self._fragments(tensors):
            for name, start, values in fragments:
                shape = self.shapes[name]
                full, seen = whole.pop(name, (None, 0))
                full = values.new_empty(shape.numel()) if full is None else full
                full[start : start + len(values)] = values
                if seen + len(values) == shape.numel():
                    yield name, full.view(shape)
                else:
                    whole[name] = (full, seen + len(values))

    @torch.no_grad()
    def copy_to(self, tensors: list[Tensor], whole: Mapping[str, Tensor]) -> None:
        """Copies ``tensors`` into whole ones by parameter name, in place, on every rank; their type may be another."""
        for fragments in self._fragments(tensors):
            targets = [whole[name].view(-1)[start : start + len(values)] for name, start, values in fragments]
            torch._foreach_copy_(targets, [values for *_, values in fragments])

    @torch.no_grad()
    def scatter(self, tensors: list[Tensor], full: Mapping[str, Tensor]) -> None:
        """Writes this rank's part of whole tensors by name into ``tensors``: the inverse of :meth:`gather`."""
        for tensor, ranks in zip(tensors, self.pieces, strict=True):
            flat = tensor.detach().view(-1)
            for piece in ranks[self.rank]:
                source = full[piece.name].reshape(-1)[piece.start : piece.start + piece.length]
                flat[piece.offset : piece.offset + piece.length] = source.to(flat.device)

    # The optimizer.

    def moments(self, name: str) -> list[Tensor]:
        """Adam's ``exp_avg`` or ``exp_avg_sq`` in the masters' layout."""
        return [self.optimizer.state[tensor][name] for tensor in self.tensors]

    def set_step(self, step: int) -> None:
        """Sets Adam's count of applied steps."""
        for tensor in self.tensors:
            self.optimizer.state[tensor]["step"].fill_(step)

    @torch.no_grad()
    def set_weights(self, full: Mapping[str, Tensor]) -> None:
        """Sets the masters and the working weights: DeepSpeed would start from masters rounded to 16 bits."""
        import deepspeed

        self.scatter(self.tensors, full)
        for name, parameter in self.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                parameter.copy_(full[name])

    def anchor(self, initial: Mapping[str, Tensor], strength: float) -> None:
        """From now on every step pulls the model's weights (``mlm.…``, not the new projection) to ``initial``.

        Args:
            initial: whole tensors by parameter name.
            strength: λ in ``p ← p + lr·λ·(p₀ − p)``.
        """
        starts = [torch.zeros_like(tensor.detach()) for tensor in self.tensors]
        self.scatter(starts, initial)
        self.optimizer.strength = strength
        for tensor, start, ranks in zip(self.tensors, starts, self.pieces, strict=True):
            stretches = [slice(p.offset, p.offset + p.length) for p in ranks[self.rank] if p.name.startswith("mlm.")]
            mine, theirs = tensor.detach().view(-1), start.view(-1)
            if stretches:
                self.optimizer.anchors[tensor] = [mine[s] for s in stretches], [theirs[s] for s in stretches]

    def _scaler(self) -> dict[str, Any]:
        """The attributes of DeepSpeed's dynamic loss scaler; none where losses are not scaled, or by a fixed number."""
        if not (self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()):
            return {}
        return vars(self.engine.optimizer.loss_scaler if self.stage else self.engine.optimizer.loss_scale_config)

    @property
    def loss_scaler(self) -> dict[str, float]:
        """The loss scale that follows the gradients in fp16, and the counters by which it does; else empty."""
        return {name: value for name, value in self._scaler().items() if name in SCALER}

    @loss_scaler.setter
    def loss_scaler(self, state: Mapping[str, float]) -> None:
        scaler = self._scaler()
        scaler.update({name: value for name, value in state.items() if name in scaler})

    def backward(self, loss: Tensor) -> None:
        """The engine's backward from a micro-batch's part of the loss.

        In fp16 DeepSpeed divides the gradients by the loss scale at every stage, but multiplies the loss by it under
        ZeRO alone (its pull request 8393).
        """
        if self.stage == 0 and self.engine.fp16_enabled():
            loss = loss * self.engine.optimizer.loss_scale
        self.engine.backward(loss)

    def step(self, lr: float) -> tuple[bool, float]:
        """The engine's optimizer step at the end of a global step.

        When the gradient's norm is not finite nothing moves: DeepSpeed sees to that where it wraps the optimizer, and
        this does where it does not (stage 0, fp32).

        Returns:
            Whether the step was applied, and the gradient's norm before clipping; equal on every rank.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        wrapper = self.engine.optimizer
        if wrapper is self.optimizer:
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.tensors if p.grad is not None]))
            self.optimizer.skip = not math.isfinite(norm)
            self.engine.step()
            return not self.optimizer.skip, norm
        # Stage 0 reports the norm of the scaled gradient.
        scale = 1.0 if self.stage else float(wrapper.loss_scale)
        self.engine.step()
        if wrapper.overflow and self.stage == 2:
            # With an offloaded optimizer DeepSpeed would add the next step's gradients to those that are not finite.
            wrapper.averaged_gradients.update(dict.fromkeys(wrapper.averaged_gradients))
        return not wrapper.overflow, float(self.engine.get_global_grad_norm()) / scale
