"""The operators of the ring against Python lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppa_fast.ops.library import OPERATIONS
from ppa_fast.ops.reference.ring import live_rows
from ppa_fast.ops.ring import commit, enqueue
from tests.ops.conftest import Backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def empty_ring(backend: Backend, rows: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Keys and groups of -7, and a state."""
    ring, groups = torch.full((rows, d), -7, dtype=dtype), torch.full((rows,), -7)
    state = torch.zeros(3, dtype=torch.int64)
    return ring.to(backend.device), groups.to(backend.device), state.to(backend.device)


def keys_of(backend: Backend, first: int, count: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of 0.5 i, with group i."""
    i = torch.arange(first, first + count, device=backend.device)
    return (i[:, None] * torch.full((d,), 0.5, device=backend.device)).to(dtype), i


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_several_steps_equal_a_list(backend: Backend, data: st.DataObject) -> None:
    """For any batches in any order of writing, the live rows are the last K keys, and only pending rows change."""
    size, batch, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 3, 40]))
    dtype, rows = data.draw(st.sampled_from(DTYPES)), size + batch
    ring, ring_groups, state = empty_ring(backend, rows, d, dtype)
    everything: list[int] = []
    for _ in range(data.draw(st.integers(1, 8))):
        written = data.draw(st.integers(0, batch))
        order = torch.tensor(data.draw(st.permutations(range(written))), dtype=torch.int64, device=backend.device)
        before, live = ring.clone(), live_rows(state, rows)
        keys, groups = keys_of(backend, len(everything), written, d, data.draw(st.sampled_from([torch.float32, dtype])))
        cut = data.draw(st.integers(0, written))
        for part in (order[:cut], order[cut:], order[:1]):  # the last step writes a key twice
            enqueue(keys[part], groups[part], part, ring, ring_groups, state)
        assert torch.equal(ring[live], before[live])
        commit(state, written, size, rows)
        everything += groups.tolist()
        cursor, count, refused = state.tolist()
        assert (cursor, count, refused) == (len(everything) % rows, min(size, len(everything)), 0)
        oldest_first = (torch.arange(cursor - count, cursor) % rows).to(backend.device)
        assert ring_groups[oldest_first].tolist() == everything[-size:]
        assert torch.equal(ring[oldest_first].float(), 0.5 * ring_groups[oldest_first, None].expand(-1, d))
        assert sorted(oldest_first.tolist()) == live_rows(state, rows).nonzero().flatten().tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_are_rounded_to_nearest(backend: Backend, dtype: torch.dtype) -> None:
    ring, ring_groups, state = empty_ring(backend, 40, 72, dtype)
    keys = torch.randn(40, 72, generator=torch.Generator().manual_seed(0)).to(backend.device)
    keys[0, :4] = torch.tensor([0.0, -0.0, 1e-7, -65519.0])
    step_indices = torch.arange(40, device=backend.device)
    enqueue(keys, step_indices, step_indices, ring, ring_groups, state)
    assert torch.equal(ring, keys.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("column", [0, 33, 71])
def test_non_finite_keys_are_refused_and_counted(backend: Backend, column: int, dtype: torch.dtype) -> None:
    ring, ring_groups, state = empty_ring(backend, 20, 72, dtype)
    keys, groups = keys_of(backend, 0, 6, 72, torch.float32)
    step_indices = torch.arange(6, device=backend.device)
    for row, value in ((1, torch.nan), (2, torch.inf), (4, -torch.inf), (5, 7e4)):
        keys[row, column] = value  # 7e4 is infinity only in fp16
    refused = [1, 2, 4, 5] if dtype == torch.float16 else [1, 2, 4]
    accepted = [i for i in range(6) if i not in refused]
    enqueue(keys, groups, step_indices, ring, ring_groups, state)
    assert state.tolist() == [0, 0, len(refused)]
    assert torch.equal(ring[accepted], keys[accepted].to(dtype))
    assert ring_groups[accepted].tolist() == accepted
    others = [*refused, *range(6, 20)]
    assert (ring[others] == -7).all()
    assert (ring_groups[others] == -7).all()
    enqueue(keys, groups, step_indices, ring, ring_groups, state)
    assert state.tolist() == [0, 0, 2 * len(refused)]


@pytest.mark.parametrize("position", [-1, -(2**63), 6, 10, 2**40, 2**63 - 1])
def test_a_position_without_a_pending_row_is_refused_and_counted(backend: Backend, position: int) -> None:
    ring, ring_groups, state = empty_ring(backend, 10, 8)
    state[:] = torch.tensor([9, 4, 5])  # rows 5 to 8 are live, 9 and 0 to 4 pending
    keys, groups = keys_of(backend, 0, 3, 8, torch.float32)
    enqueue(keys, groups, torch.tensor([5, position, 0], device=backend.device), ring, ring_groups, state)
    assert state.tolist() == [9, 4, 6]
    assert ring_groups.tolist() == [-7, -7, -7, -7, 0, -7, -7, -7, -7, 2]
    assert ring[:, 0].tolist() == [-7, -7, -7, -7, 0, -7, -7, -7, -7, 1]


@pytest.mark.parametrize("bad", [[10, 4, 1], [-1, 4, 1], [3, -1, 1], [3, 11, 1], [2**62, 2**62, 1]])
def test_an_invalid_state_counts_as_an_empty_ring(backend: Backend, bad: list[int]) -> None:
    ring, ring_groups, state = empty_ring(backend, 10, 8)
    state[:] = torch.tensor(bad)
    keys, groups = keys_of(backend, 0, 3, 8, torch.float32)
    enqueue(keys, groups, groups, ring, ring_groups, state)
    assert ring_groups.tolist() == [0, 1, 2, *[-7] * 7]
    commit(state, 3, 8, 10)
    assert state.tolist() == [3, 3, 1]


def test_enqueue_accepts_no_keys(backend: Backend) -> None:
    ring, ring_groups, state = empty_ring(backend, 10, 8)
    keys, groups = keys_of(backend, 0, 0, 8, torch.float32)
    enqueue(keys, groups, groups, ring, ring_groups, state)
    assert (ring == -7).all()


BAD_ENQUEUE: dict[str, Any] = {
    "keys: found torch.float64": lambda k, g, p, r: (k.double(), g, p, *r),
    "keys: found shape": lambda k, g, p, r: (k[:, 1:].contiguous(), g, p, *r),
    "keys: expected a contiguous": lambda k, g, p, r: (k.T.contiguous().T, g, p, *r),
    "groups": lambda k, g, p, r: (k, g.int(), p, *r),
    "step_indices": lambda k, g, p, r: (k, g, p[1:], *r),
    "ring: found torch.int64": lambda k, g, p, r: (k, g, p, r[0].long(), *r[1:]),
    "ring: found shape": lambda k, g, p, r: (k, g, p, r[0][:0], r[1][:0], r[2]),
    "ring_groups": lambda k, g, p, r: (k, g, p, r[0], r[1][1:], r[2]),
    "state": lambda k, g, p, r: (k, g, p, r[0], r[1], r[2][:2]),
}


@pytest.mark.parametrize("message", BAD_ENQUEUE)
def test_an_invalid_argument_of_enqueue_is_named(backend: Backend, message: str) -> None:
    keys, groups = keys_of(backend, 0, 3, 8, torch.float32)
    arguments = BAD_ENQUEUE[message](keys, groups, groups, empty_ring(backend, 10, 8))
    with pytest.raises((TypeError, ValueError), match=message):
        enqueue(*arguments)
    if backend.name != "reference":
        with pytest.raises(RuntimeError, match=message.split(":")[0]):
            OPERATIONS["enqueue"](*arguments)


@pytest.mark.parametrize(
    ("name", "written", "size", "rows"),
    [("size", 0, 0, 5), ("rows", 0, 6, 5), ("written", -1, 5, 6), ("written", 7, 5, 6)],
)
def test_an_invalid_argument_of_commit_is_named(
    backend: Backend, name: str, written: int, size: int, rows: int
) -> None:
    state = torch.zeros(3, dtype=torch.int64, device=backend.device)
    with pytest.raises(ValueError, match=f"^{name}: found"):
        commit(state, written, size, rows)
    with pytest.raises(TypeError, match=r"^state: found"):
        commit(state.int(), 0, 5, 6)
    if backend.name != "reference":
        with pytest.raises(RuntimeError, match=name):
            OPERATIONS["commit"](state, written, size, rows)
    assert state.tolist() == [0, 0, 0]


def test_the_operators_pass_opcheck(backend: Backend) -> None:
    namespace = getattr(torch.ops, "ppa_fast" if backend.name == "reference" else backend.namespace)
    ring, ring_groups, state = empty_ring(backend, 10, 8, torch.bfloat16)
    keys, groups = keys_of(backend, 0, 3, 8, torch.float32)
    torch.library.opcheck(namespace.enqueue.default, (keys, groups, groups, ring, ring_groups, state))
    torch.library.opcheck(namespace.commit.default, (state, 3, 5, 10))
