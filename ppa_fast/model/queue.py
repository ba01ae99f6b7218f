"""The queue of earlier keys (MoCo), as a ring that readers and writers share without meeting."""

from __future__ import annotations

import torch
from torch import Tensor

from ppa_fast.ops import ring

NO_GROUP = -(2**63)  # of random warm-up rows: they translate nothing


class KeyQueue:
    """K live rows and B pending ones in a ring of K + B rows.

    ``vectors``: [K+B, D] of ``dtype``, unit rows; ``groups``: int64 [K+B]; ``state``: int64 [3], cursor, count and
    refused keys (``ops.ring``): only the device knows which rows are live, and no step waits for it.
    A global step reads the live rows and writes its keys to the pending ones; ``commit`` makes those live and the
    oldest ones pending: all micro-batches of a step see the same queue, any batch fits, wrap-around is exact.
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

    def enqueue(self, keys: Tensor, groups: Tensor, positions: Tensor) -> None:
        """Writes keys [M, D] with groups [M] to the pending rows of their positions [M] (0..B-1) in the global step."""
        ring.enqueue(keys, groups, positions, self.vectors, self.groups, self.state)

    def commit(self, written: int) -> None:
        """Ends a global step: its ``written`` keys (positions 0..written-1) are live, the oldest rows make room."""
        ring.commit(self.state, written, self.size, len(self.groups))

    def fill(self, keys: Tensor, groups: Tensor, cursor: int | None = None) -> None:
        """Replaces the content by these keys [n, D], groups [n], oldest first; of more than K the last K stay.

        ``cursor`` restores the place of a saved ring's cursor: sums over the queue round by the order of its rows, so a
        run that goes on bit for bit needs every key in its old row.

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
        """The live keys fp32 [n, D] and their groups int64 [n], oldest first: with the cursor, all of a checkpoint."""
        rows = self._rows()
        return self.vectors[rows].float(), self.groups[rows]

    # What follows waits for the device: for checkpoints and tests.

    @property
    def cursor(self) -> int:
        """Ring row of the next step's first key."""
        return int(self.state[0])

    @property
    def count(self) -> int:
        """How many rows are live."""
        return int(self.state[1])

    @property
    def live(self) -> Tensor:
        """Which rows are live, bool [K+B]."""
        live = torch.zeros_like(self.groups, dtype=torch.bool)
        live[self._rows()] = True
        return live

    def _rows(self) -> Tensor:
        """Ring rows of the live keys, oldest first."""
        cursor, count = self.cursor, self.count
        return torch.arange(cursor - count, cursor, device=self.groups.device) % len(self.groups)
