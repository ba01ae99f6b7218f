"""The momentum (key) encoder: a slowly updated fp32 master and a working copy in the training precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.ops.assemble import PackedSequences
from ppa_fast.ops.ema import ema_


@dataclass(frozen=True)
class WorkingCopy:
    """Full weights in the working precision, updated from tensors in the masters' layout.

    ``parts``: tensors for this rank's part of the weights. ``spread``: call it after writing them, to update the
    full weights on every rank.
    """

    parts: list[Tensor]
    spread: Callable[[], None]


class Masters(Protocol):
    """The fp32 weights that the optimizer updates, as stored on this rank (``training.zero``)."""

    tensors: list[Tensor]

    def working_copy(self, whole: Mapping[str, Tensor]) -> WorkingCopy:
        """Makes a working copy of full tensors by parameter name; may change their storage."""


class MomentumEncoder:
    """Stores its master in the layout of the query encoder's masters, so that updates need no communication.

    ``tensors``: the master, sharded or on the CPU if the query encoder's masters are. In fp32 it is this rank's part of
    the working copy; in 16 bits it is a separate tensor. Every rank's device has the full working copy. Weights are
    sent to it in its own precision.

    Args:
        model: a copy of the query encoder, made before ``deepspeed.initialize``, in the training precision, on the
            device. Keep it out of the engine's module tree, or DeepSpeed casts and partitions it.
        masters: masters of the query encoder, which initialize the momentum master.
    """

    def __init__(self, model: AlignmentModel, masters: Masters) -> None:
        self.model = model.eval().requires_grad_(False)
        self.masters = masters
        self._working = masters.working_copy(dict(self.model.named_parameters()))
        fp32 = next(self.model.parameters()).dtype == torch.float32
        self._rounded = [] if fp32 else self._working.parts
        self.tensors = self._working.parts if fp32 else [torch.empty_like(t) for t in masters.tensors]
        for tensor, master in zip(self.tensors, masters.tensors, strict=True):
            tensor.copy_(master.detach())
        self.refresh()

    def update(self, momentum: float) -> None:
        """Updates master, ``k ← m·k + (1 − m)·q`` in fp32, and working copy; call it after each optimizer step."""
        ema_(self.tensors, [q.detach() for q in self.masters.tensors], self._rounded, momentum)
        self._working.spread()

    def refresh(self) -> None:
        """Updates the working copy from the master, after the master was set or the copy was used otherwise."""
        for rounded, master in zip(self._rounded, self.tensors, strict=bool(self._rounded)):
            rounded.copy_(master)
        self._working.spread()

    @torch.no_grad()
    def keys(self, sentences: PackedSequences) -> Tensor:
        """Key vectors fp32 [S, D], unit rows; no dropout, no gradient."""
        return self.model.project(sentences)
