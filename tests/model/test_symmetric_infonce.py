"""InfoNCE in both directions against its formula, pair by pair, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.model import symmetric_infonce as module
from ppa_fast.model.symmetric_infonce import symmetric_infonce

TAU = 0.05


def unit(n: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def formula(query: Tensor, key: Tensor, groups: list[int], i: int) -> tuple[Tensor, float]:
    """The loss of pair i, and the share of its directions in which the positive scores highest."""
    terms, wins = [], 0
    for one, other in ((query, key), (key, query)):
        positive = one[i].dot(other[i]) / TAU
        negatives = [one[i].dot(other[j]) / TAU for j in range(len(groups)) if groups[j] != groups[i]]
        terms.append(-(positive.exp() / (positive.exp() + sum(n.exp() for n in negatives))).log())
        wins += all(positive > n for n in negatives)
    return sum(terms) / 2, wins / 2


def check(query: Tensor, key: Tensor, groups: list[int], tolerance: float) -> None:
    leaves = [side.detach().double().requires_grad_() for side in (query, key)]
    expected = [formula(*leaves, groups, i) for i in range(len(groups))]
    gradients = torch.autograd.grad(sum(loss for loss, _ in expected), leaves)
    found = symmetric_infonce(query, key, torch.tensor(groups), TAU)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(found.loss, torch.stack([loss for loss, _ in expected]), **close)
    for name, gradient in zip(("d_query", "d_key"), gradients, strict=True):
        torch.testing.assert_close(getattr(found, name), gradient, **close)
    assert found.top1.tolist() == [share for _, share in expected]


@pytest.mark.parametrize("chunk", [1, 3 * 11, 2**22], ids=["rows", "three rows", "at once"])
@pytest.mark.parametrize("groups", [list(range(11)), [0, 1, 0, 2, 3, 0, 2, 4, 5, 6, 7], [5] * 11])
def test_loss_and_both_gradients_equal_the_formula(monkeypatch, groups, chunk):
    """For any number of chunks. The pairs have separate groups, some share a group, or all share one."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    query = unit(11, 8, 0)
    check(query, F.normalize(query + unit(11, 8, 1), dim=1), groups, 1e-10)


def test_fp32_equals_the_formula():
    query = unit(20, 16, 2, torch.float32)
    check(query, F.normalize(query + unit(20, 16, 3, torch.float32), dim=1), [i // 2 for i in range(20)], 2e-5)


def test_one_pair_has_no_negatives():
    found = symmetric_infonce(unit(1, 8, 0), unit(1, 8, 1), torch.tensor([7]), TAU)
    assert found.loss.item() == found.d_query.abs().max().item() == found.d_key.abs().max().item() == 0
    assert found.top1.item() == 1


def test_translations_of_one_sentence_do_not_repel_each_other():
    """Two pairs share an English sentence; a third pair is a negative of both."""
    query, key = unit(3, 8, 4), unit(3, 8, 5)
    query[1] = query[0]
    found = symmetric_infonce(query, key, torch.tensor([1, 1, 2]), TAU)
    apart = [symmetric_infonce(query[[i, 2]], key[[i, 2]], torch.tensor([1, 2]), TAU) for i in (0, 1)]
    for i, alone in enumerate(apart):
        torch.testing.assert_close(found.loss[i], alone.loss[0])
        torch.testing.assert_close(found.d_query[i], alone.d_query[0])
    swapped = symmetric_infonce(query, key, torch.tensor([1, 3, 2]), TAU)
    assert (swapped.loss > found.loss)[:2].all()


def test_wide_vectors_equal_the_formula():
    query = unit(5, 4096, 6, torch.float32)
    check(query, F.normalize(query + unit(5, 4096, 7, torch.float32), dim=1), [0, 1, 2, 1, 3], 2e-5)


def test_a_non_finite_vector_affects_every_pair_of_another_group():
    query, key = unit(4, 8, 8), unit(4, 8, 9)
    key[3, 0] = torch.nan
    found = symmetric_infonce(query, key, torch.arange(4), TAU)
    assert not found.loss.isfinite().any()
    assert not found.d_query.isfinite().all(dim=1).any()
