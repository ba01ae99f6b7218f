"""Blockwise neighbours against the complete product, their memory, and the margin computed by hand."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppa_fast.tasks import neighbours
from ppa_fast.tasks.neighbours import Neighbours, margin, nearest


def unit(rows: int, seed: int, width: int = 8) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def whole(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity, index = (a @ b.T).sort(dim=1, descending=True, stable=True)
    return similarity[:, :k], index[:, :k]


@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize(("n", "m", "k"), [(50, 33, 4), (7, 64, 1), (40, 3, 4), (1, 1, 4)])
def test_blocks_equal_the_complete_product(monkeypatch: pytest.MonkeyPatch, block: int, n: int, m: int, k: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    a, b = unit(n, 0), unit(m, 1)
    for found, (queries, keys) in zip(nearest(a, b, k), ((a, b), (b, a)), strict=True):
        similarity, index = whole(queries, keys, k)
        assert found.index.shape == (len(queries), min(k, len(keys)))
        torch.testing.assert_close(found.similarity, similarity, atol=1e-6, rtol=0)
        assert torch.equal(found.index, index)


@pytest.mark.parametrize("block", [2, 3, 100])
def test_equal_similarities_are_sorted_by_index(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    # Products of ones and zeros are exact.
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    forward, backward = nearest(a, b, 3)
    assert forward.index.tolist() == [[1, 2, 4], [0, 3, 1]]
    assert backward.index.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [0, 1]]


class PeakBytes(TorchDispatchMode):
    """The peak bytes of tensors that were created in this mode; views count as 0."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and not func.is_view and func._schema.name[-1] != "_":
                size = tensor.untyped_storage().nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(tensor, self.free, size)
        return result

    def free(self, size: int) -> None:
        self.live -= size


def test_memory_is_limited_to_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    block, n, m, k = 64, 1500, 1100, 4
    monkeypatch.setattr(neighbours, "BLOCK", block)
    a, b = unit(n, 0), unit(m, 1)
    with PeakBytes() as memory:
        nearest(a, b, k)
    stated = 12 * block * (block + k) + 12 * k * (n + m)
    small = 64 * block * k  # data per row of a block
    assert memory.peak <= stated + small
    assert memory.peak > stated / 2  # the measure counts the blocks
    assert stated + small < 4 * n * m / 10


def test_the_margin_equals_the_hand_computed_value() -> None:
    # One x between y0, which is near to everything, and y1, which is near to nothing else.
    of = Neighbours(torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 1]]))
    back = Neighbours(torch.tensor([[0.95, 0.9], [0.8, 0.2]]), torch.tensor([[7, 0], [0, 7]]))
    expected = [0.9 / ((0.85 + 0.925) / 2), 0.8 / ((0.85 + 0.5) / 2)]
    assert margin(of, back)[0].tolist() == pytest.approx(expected)
    assert expected[1] > expected[0]


def test_the_margin_equals_its_formula() -> None:
    a, b, k = unit(20, 2), unit(30, 3), 4
    cosine = a @ b.T
    forward, backward = nearest(a, b, k)
    for of, back, table in ((forward, backward, cosine), (backward, forward, cosine.T)):
        found = margin(of, back)
        for x in range(len(table)):
            for place, y in enumerate(of.index[x].tolist()):
                around_x = table[x].sort(descending=True).values[:k].sum() / (2 * k)
                around_y = table[:, y].sort(descending=True).values[:k].sum() / (2 * k)
                assert found[x, place].item() == pytest.approx((table[x, y] / (around_x + around_y)).item(), rel=1e-5)
