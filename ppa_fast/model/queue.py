"""The queue of earlier keys (MoCo), as a ring that readers and writers share without meeting."""

from __future__ import annotations

import torch
from torch import Tensor

NO_GROUP = -(2**63)  # of random warm-up rows: they translate nothing


class KeyQueue:
    """K live rows and B pending ones in a ring of K + B rows.

    ``vectors``: fp32 [K+B, D], unit rows; ``groups``: int64 [K+B]; ``live``: bool [K+B], the rows that are negatives.
    A global step reads the live rows and writes its keys to the pending ones; ``commit`` makes those live and the
    oldest ones pending: all micro-batches of a step see the same queue, any batch fits, wrap-around is exact.
    """

    def __init__(self, size: int, batch: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.size, self.batch = size, batch
        self.vectors = torch.zeros(size + batch, dim, device=device)
        self.groups = torch.full((size + batch,), NO_GROUP, dtype=torch.int64, device=device)
        self.live = torch.zeros(size + batch, dtype=torch.bool, device=device)
        self.cursor = 0  # ring row of the next step's first key
        self.count = 0  # live rows

    def enqueue(self, keys: Tensor, groups: Tensor, positions: Tensor) -> None:
        """Writes keys [M, D] with groups [M] to the pending rows of their positions [M] (0..B-1) in the global step."""
        rows = (self.cursor + positions) % len(self.live)
        self.vectors[rows] = keys.float()
        self.groups[rows] = groups

    def commit(self, written: int) -> None:
        """Ends a global step: its ``written`` keys (positions 0..written-1) are live, the oldest rows make room."""
        self.cursor = (self.cursor + written) % len(self.live)
        self.count = min(self.size, self.count + written)
        self.live.fill_(False)
        self.live[self._rows()] = True

    def _rows(self) -> Tensor:
        """Ring rows of the live keys, oldest first."""
        first = self.cursor - self.count
        return (first + torch.arange(self.count, device=self.live.device)) % len(self.live)

    def fill(self, keys: Tensor, groups: Tensor, cursor: int | None = None) -> None:
        """Replaces the content by these keys [n, D], groups [n], oldest first; of more than K the last K stay.

        ``cursor`` restores the place of a saved ring's cursor: sums over the queue round by the order of its rows, so a
        run that goes on bit for bit needs every key in its old row.
        """
        keys, groups = keys[-self.size :], groups[-self.size :]
        n = len(keys)
        self.cursor, self.count = (n if cursor is None else cursor) - n, 0
        self.commit(n)
        self.vectors.zero_()
        self.groups.fill_(NO_GROUP)
        rows = self._rows()
        self.vectors[rows], self.groups[rows] = keys.float(), groups

    def content(self) -> tuple[Tensor, Tensor]:
        """The live keys fp32 [n, D] and their groups int64 [n], oldest first: with the cursor, all of a checkpoint."""
        rows = self._rows()
        return self.vectors[rows], self.groups[rows]
