"""The momentum (key) encoder: an fp32 master that moves slowly, and a working copy in the training precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.ops.assemble import Stream
from ppa_fast.ops.ema import ema_


class Masters(Protocol):
    """The fp32 weights that the optimizer moves, as this rank holds them (``training.zero``)."""

    tensors: list[Tensor]

    def copy_to(self, tensors: list[Tensor], whole: Mapping[str, Tensor]) -> None:
        """Copies every rank's ``tensors``, which have the masters' layout, into whole ones by parameter name."""


class MomentumEncoder:
    """Holds its master in the layout of the query encoder's masters, so that the update needs no communication.

    The master is sharded, or on the CPU, where they are; the working copy is whole on every rank's device, and what
    travels to it is already in its precision.

    Args:
        model: a copy of the query encoder, made before DeepSpeed sees that one, in the training precision, on the
            device. It stays out of the engine's module tree: inside, DeepSpeed would cast and partition it.
        masters: of the query encoder; the momentum master starts equal to them.
    """

    def __init__(self, model: AlignmentModel, masters: Masters) -> None:
        self.model = model.eval().requires_grad_(False)
        self.masters = masters
        self.tensors = [t.detach().clone() for t in masters.tensors]
        self._working = dict(self.model.named_parameters())
        dtype = next(iter(self._working.values())).dtype
        # The masters in the working precision, which is what travels between ranks; fp32 needs no copy.
        self._rounded = self.tensors if dtype == torch.float32 else [t.to(dtype) for t in self.tensors]
        self.refresh()

    def update(self, momentum: float) -> None:
        """Once a global step, after the optimizer: ``k ← m·k + (1 − m)·q`` in fp32, then the working copy follows."""
        rounded = [] if self._rounded is self.tensors else self._rounded
        ema_(self.tensors, [q.detach() for q in self.masters.tensors], rounded, momentum)
        self.masters.copy_to(self._rounded, self._working)

    def refresh(self) -> None:
        """Brings the working copy in line with a master that was set from outside, or after another use of the copy."""
        for rounded, master in zip(self._rounded, self.tensors, strict=True):
            rounded.copy_(master)
        self.masters.copy_to(self._rounded, self._working)

    @torch.no_grad()
    def keys(self, sentences: Stream) -> Tensor:
        """Key vectors fp32 [S, D], unit rows; no dropout, no gradient."""
        return self.model.project(sentences)
