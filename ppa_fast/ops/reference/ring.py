"""The ring buffer of keys in plain PyTorch: live rows, enqueue and commit."""

from __future__ import annotations

import torch
from torch import Tensor


def cursor_and_count(state: Tensor, rows: int) -> Tensor:
    """The first pending row and the number of live rows, int64 [2]; zeros for an invalid state."""
    cursor, count = state[0], state[1]
    sound = (cursor >= 0) & (cursor < rows) & (count >= 0) & (count <= rows)
    return torch.where(sound, state[:2], 0)


def live_rows(state: Tensor, rows: int) -> Tensor:
    """Marks the live rows, bool [rows]: those whose age (0 for the newest) is below the number of live keys."""
    cursor, count = cursor_and_count(state, rows)
    return (cursor - 1 - torch.arange(rows, device=state.device)) % rows < count


@torch.no_grad()
def enqueue(
    keys: Tensor, groups: Tensor, step_indices: Tensor, ring: Tensor, ring_groups: Tensor, state: Tensor
) -> None:
    rows = len(ring)
    cursor, count = cursor_and_count(state, rows)
    keys = keys.to(ring.dtype)
    accepted = keys.isfinite().all(1) & (step_indices >= 0) & (step_indices < rows - count)
    at = (cursor + step_indices[accepted]) % rows
    ring[at], ring_groups[at] = keys[accepted], groups[accepted]
    state[2] += (~accepted).sum()


def commit(state: Tensor, written: int, size: int, rows: int) -> None:
    cursor, count = cursor_and_count(state, rows)
    state[:2] = torch.stack([(cursor + written) % rows, (count + written).clamp(max=size)])
