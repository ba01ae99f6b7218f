"""The queue of earlier keys (MoCo): a ring in which reads and writes use separate rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ppa_fast.ops import ring

NO_GROUP = -(2**63)  # group of random warm-up rows, which translate no sentence


class KeyQueue:
    """A ring of K + B rows: K live and B pending.

    ``vectors``: [K+B, D] of ``dtype``, unit rows; ``groups``: int64 [K+B]; ``state``: int64 [3], cursor, count and
    refused keys (``ops.ring``). The state stays on the device, so that no step has to synchronize.
    A global step reads the live rows and writes its keys to pending rows. ``commit`` makes the written rows live and
    the oldest rows pending. All micro-batches of a step use the same queue. A batch of any size fits, and wrap-around
    is exact.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if size < 1:
            raise ValueError(f"size: found {size}, expected at least 1")
        self.size = size
        self.vectors = torch.zeros(size + batch, dim, device=device, dtype=dtype)
        self.groups = torch.full((size + batch,), NO_GROUP, dtype=torch.int64, device=device)
        self.state = torch.zeros(3, dtype=torch.int64, device=device)

    def enqueue(self, keys: Tensor, groups: Tensor, step_indices: Tensor) -> None:
        """Writes keys [M, D], groups [M] to the pending rows at their indices [M] in the global step (0..B-1)."""
        ring.enqueue(keys, groups, step_indices, self.vectors, self.groups, self.state)

    def commit(self, written: int) -> None:
        """Ends a global step: its ``written`` keys (step indices 0..written-1) replace the oldest live rows."""
        ring.commit(self.state, written, self.size, len(self.groups))

    def fill(self, keys: Tensor, groups: Tensor, cursor: int | None = None) -> None:
        """Replaces the content with keys [n, D] and groups [n], oldest first; keeps at most the last K.

        ``cursor`` restores the cursor of a saved ring. Rounding of sums over the queue depends on the row order, so
        resuming bit for bit requires every key in its old row.

        Raises:
            ValueError: a key is not finite.
        """
        if not keys.isfinite().all():
            raise ValueError("keys: found elements that are not finite")
        keys, groups = keys[-self.size :], groups[-self.size :]
        n = len(keys)
        self.state[0] = (n if cursor is None else cursor) % len(self.groups)
        self.state[1] = n
        self.vectors.zero_()
        self.groups.fill_(NO_GROUP)
        rows = self._rows()
        self.vectors[rows], self.groups[rows] = keys.to(self.vectors.dtype), groups

    def content(self) -> tuple[Tensor, Tensor]:
        """Live keys fp32 [n, D] and their groups int64 [n], oldest first. A checkpoint stores these and the cursor."""
        rows = self._rows()
        return self.vectors[rows].float(), self.groups[rows]

    # For checkpoints and tests: the methods below synchronize with the device.

    @property
    def cursor(self) -> int:
        """Ring row for the first key of the next step."""
        return int(self.state[0])

    @property
    def count(self) -> int:
        """Number of live rows."""
        return int(self.state[1])

    @property
    def live(self) -> Tensor:
        """Mask of live rows, bool [K+B]."""
        live = torch.zeros_like(self.groups, dtype=torch.bool)
        live[self._rows()] = True
        return live

    def _rows(self) -> Tensor:
        """Ring rows of the live keys, oldest first."""
        cursor, count = self.cursor, self.count
        return torch.arange(cursor - count, cursor, device=self.groups.device) % len(self.groups)
