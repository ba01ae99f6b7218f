"""Access to DeepSpeed's fp32 master weights. Only this module and ``flat_bf16`` use DeepSpeed's internals.

Up to stage 2, in every precision, the base optimizer's ``param_groups`` hold this rank's fp32 masters. These are the
parameters themselves (stage 0, fp32), a copy of each (stage 0, bf16 and fp16), or one flat partition per group (stages
1 and 2), in which ``_hp_mapping`` locates each parameter. At stage 3 the masters are ``fp32_partitioned_groups_flat``,
one per group of ``fp16_groups``: every parameter is split into one equal part per rank, and a rank's parts are
contiguous.

Tested with DeepSpeed 0.19.8. If a new version differs, ``tests/training/test_zero.py`` fails first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.model.momentum import WorkingCopy
from ppa_fast.training.optimizer import AdamW

BUFFER = 2**26  # elements per all-gather, over all ranks: 256 MiB in fp32
SCALER = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}  # cur_hysteresis only with ZeRO


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + length) of parameter ``name``, at ``offset`` in a rank's master tensor."""

    name: str
    start: int
    offset: int
    length: int


class ZeroMasters:
    """The fp32 masters of an engine's trained weights, by parameter name, for every ZeRO stage and precision.

    ``tensors``: this rank's masters, on the device or, with an offloaded optimizer, on the CPU. ``gather``, ``copy_to``
    and ``scatter`` accept any list of tensors with the same shapes (Adam's moments, the momentum encoder).
    ``shapes``: the shapes of the full parameters, which no rank holds at stage 3.
    """

    def __init__(self, engine: Any) -> None:
        from ppa_fast.training.flat_bf16 import flatten  # here, because importing DeepSpeed takes seconds

        flatten(engine)
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
        self.rank = dist.get_rank() if self.stage else 0  # this rank's index in ``pieces``
        self.pieces = (self._stage_0_pieces, self._flat_pieces, self._flat_pieces, self._stage_3_pieces)[self.stage]()
        for tensor in self.tensors:
            self.optimizer.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                "exp_avg": torch.zeros_like(tensor.detach()),
                "exp_avg_sq": torch.zeros_like(tensor.detach()),
            }

    # ``pieces[i][rank]``: the pieces of parameters in master tensor i of a rank.

    def _stage_0_pieces(self) -> list[list[list[Piece]]]:
        """Stage 0: one master per parameter."""
        names = {id(p): n for n, p in self.parameters.items()}
        wrapper = self.engine.optimizer
        groups = [self.tensors] if wrapper is self.optimizer else wrapper.fp16_groups
        return [[[Piece(names[id(p)], 0, 0, p.numel())]] for group in groups for p in group]

    def _flat_pieces(self) -> list[list[list[Piece]]]:
        """Stages 1 and 2: a group's parameters are concatenated and split between ranks at any element."""
        mine: list[list[Piece]] = [[] for _ in self.tensors]
        for name, parameter in self.parameters.items():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: the parameter is on other ranks
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                mine[mapping.param_group_index].append(Piece(name, low.start, high.start, high.numel))
        everyone: list[list[list[Piece]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        return [[rank[i] for rank in everyone] for i in range(len(self.tensors))]

    def _stage_3_pieces(self) -> list[list[list[Piece]]]:
        """Stage 3: every rank has an equal part of each parameter; the last parts are padded."""
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

    # Full tensors.

    @torch.no_grad()
    def _fragments(self, tensors: list[Tensor]) -> Iterator[list[tuple[str, int, Tensor]]]:
        """Parts of full parameters, (name, first element, values), on the device; one all-gather per list. Every rank
        receives all parts and must consume the complete iterator."""
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
        """Yields the full tensors by parameter name, on every rank's device. Every rank must consume the complete
        iterator.

        Holds about ``BUFFER`` elements at a time, independent of the model size.
        """
        partial: dict[str, tuple[Tensor, int]] = {}
        for fragments in self._fragments(tensors):
            for name, start, values in fragments:
                shape = self.shapes[name]
                full, seen = partial.pop(name, (None, 0))
                full = values.new_empty(shape.numel()) if full is None else full
                full[start : start + len(values)] = values
                if seen + len(values) == shape.numel():
                    yield name, full.view(shape)
                else:
                    partial[name] = (full, seen + len(values))

    @torch.no_grad()
    def copy_to(self, tensors: list[Tensor], full: Mapping[str, Tensor]) -> None:
        """Copies ``tensors`` into full tensors by parameter name, in place, on every rank; dtypes may differ."""
        for fragments in self._fragments(tensors):
            targets = [full[name].view(-1)[start : start + len(values)] for name, start, values in fragments]
            torch._foreach_copy_(targets, [values for *_, values in fragments])

    def working_copy(self, full: Mapping[str, Tensor]) -> WorkingCopy:
        """A working copy of full tensors by parameter name, on the engine's device.

        Up to stage 2 a rank's parts are views of the full tensors. These are moved into flat buffers, so that one
        all-gather per buffer synchronizes the ranks. At stage 3, where a parameter's parts are not contiguous, and with
        an offloaded optimizer, the parts are separate tensors.
        """
        dtype = next(iter(full.values())).dtype
        if self.stage == 3 or self.tensors[0].device != self.engine.device:
            parts = [torch.empty_like(tensor, dtype=dtype) for tensor in self.tensors]
            return WorkingCopy(parts, lambda: self.copy_to(parts, full))
        buffers, parts = [], []
        for tensor, ranks in zip(self.tensors, self.pieces, strict=True):
            size = tensor.numel()
            buffer = torch.zeros(len(ranks) * size, dtype=dtype, device=tensor.device)
            for rank, pieces in enumerate(ranks):
                for piece in pieces:
                    first, shape = rank * size + piece.offset - piece.start, self.shapes[piece.name]
                    full[piece.name].data = buffer[first : first + shape.numel()].view(shape)
            buffers.append(buffer)
            parts.append(buffer[self.rank * size : (self.rank + 1) * size].view(tensor.shape))

        def spread() -> None:
            for buffer, part, ranks in zip(buffers, parts, self.pieces, strict=True):
                if len(ranks) > 1:
                    dist.all_gather_into_tensor(buffer, part)

        return WorkingCopy(parts, spread)

    @torch.no_grad()
    def scatter(self, tensors: list[Tensor], full: Mapping[str, Tensor]) -> None:
        """Writes this rank's parts of full tensors into ``tensors``: the inverse of :meth:`gather`."""
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
        """Sets the masters and the working weights, because DeepSpeed initializes masters from 16-bit weights."""
        import deepspeed

        self.scatter(self.tensors, full)
        for name, parameter in self.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                parameter.copy_(full[name])

    def anchor(self, initial: Mapping[str, Tensor], strength: float) -> None:
        """Makes every later step pull the model's weights (``mlm.…``, not the new projection) to ``initial``.

        Args:
            initial: full tensors by parameter name.
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
        """The attributes of DeepSpeed's dynamic loss scaler; empty without loss scaling or with a static scale."""
        if not (self.engine.fp16_enabled() and self.engine.dynamic_loss_scale()):
            return {}
        return vars(self.engine.optimizer.loss_scaler if self.stage else self.engine.optimizer.loss_scale_config)

    @property
    def loss_scaler(self) -> dict[str, float]:
        """The dynamic loss scale in fp16 and its counters; otherwise empty."""
        return {name: value for name, value in self._scaler().items() if name in SCALER}

    @loss_scaler.setter
    def loss_scaler(self, state: Mapping[str, float]) -> None:
        scaler = self._scaler()
        scaler.update({name: value for name, value in state.items() if name in scaler})

    def backward(self, loss: Tensor) -> None:
        """Runs the engine's backward from a micro-batch's part of the loss.

        In fp16 DeepSpeed divides the gradients by the loss scale at every stage, but multiplies the loss by it only
        with ZeRO (DeepSpeed pull request 8393).
        """
        if self.stage == 0 and self.engine.fp16_enabled():
            loss = loss * self.engine.optimizer.loss_scale
        self.engine.backward(loss)

    def step(self, lr: float) -> tuple[bool, float]:
        """Runs the engine's optimizer step at the end of a global step.

        Skips the update if the gradient norm is not finite. DeepSpeed does this where it wraps the optimizer, and this
        method does it otherwise (stage 0, fp32).

        Returns:
            Whether the step was applied, and the gradient norm before clipping; equal on every rank.
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
            # With an offloaded optimizer, DeepSpeed would add the next step's gradients to the non-finite ones.
            wrapper.averaged_gradients.update(dict.fromkeys(wrapper.averaged_gradients))
        return not wrapper.overflow, float(self.engine.get_global_grad_norm()) / scale
