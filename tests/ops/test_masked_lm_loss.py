from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppa_fast.ops import library
from ppa_fast.ops import masked_lm_loss as module
from ppa_fast.ops.library import OPERATIONS
from ppa_fast.ops.masked_lm_loss import masked_lm_loss
from tests.ops.conftest import Backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def cross_entropy_(*arguments: Any) -> Tensor:
    loss: Tensor = OPERATIONS["cross_entropy_"](*arguments)
    return loss


def rows_of(
    rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int = 0, scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and bias, with NaN in the padding, and labels."""
    g = torch.Generator().manual_seed(seed)
    stride = -(-vocab_size // 64) * 64
    logits = torch.full((rows, stride), torch.nan, dtype=dtype)
    bias = torch.full((stride,), torch.nan, dtype=dtype)
    logits[:, :vocab_size] = torch.randn(rows, vocab_size, generator=g) * scale
    bias[:vocab_size] = torch.randn(vocab_size, generator=g)
    labels = torch.randint(vocab_size, (rows,), generator=g)
    return logits.to(device), bias.to(device), labels.to(device)


def by_definition(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and gradients of biased logits [M, V], in the precision of the logits."""
    z = z.detach().requires_grad_()
    losses = F.cross_entropy(z, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    return losses.detach(), gradient


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).abs().max()) if found.numel() else 0.0


def check_rows(backend: Backend, rows: int, vocab_size: int, dtype: torch.dtype, seed: int = 0) -> None:
    logits, bias, labels = rows_of(rows, vocab_size, dtype, backend.device, seed)
    z = logits[:, :vocab_size].double() + bias[:vocab_size].double()
    exact_loss, exact_gradient = by_definition(z, labels)
    plain_loss, plain_gradient = by_definition(z.to(dtype).float(), labels)
    loss = cross_entropy_(logits, bias, labels, vocab_size)
    assert loss.dtype == torch.float32
    assert error(loss, exact_loss) <= 2 * error(plain_loss, exact_loss) + 1e-5
    gradient = logits[:, :vocab_size]
    assert error(gradient, exact_gradient) <= 3 * error(plain_gradient.to(dtype), exact_gradient) + 1e-5
    assert not logits[:, vocab_size:].any(), "the padding is 0"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65, 1000, 2049, 8191, 49_153])
def test_losses_and_gradients_equal_the_definition(backend: Backend, vocab_size: int, dtype: torch.dtype) -> None:
    check_rows(backend, 5, vocab_size, dtype)


# The vocabularies of mBERT, XLM-R, mmBERT and LaBSE.
REAL = [(119_547, torch.bfloat16), (250_002, torch.float16), (256_000, torch.bfloat16), (501_153, torch.bfloat16)]


@pytest.mark.parametrize(("vocab_size", "dtype"), REAL)
def test_real_vocabularies_equal_the_definition(backend: Backend, vocab_size: int, dtype: torch.dtype) -> None:
    check_rows(backend, 3, vocab_size, dtype)


@given(st.integers(0, 9), st.integers(1, 400), st.sampled_from(DTYPES), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_equals_the_definition(
    backend: Backend, rows: int, vocab_size: int, dtype: torch.dtype, seed: int
) -> None:
    check_rows(backend, rows, vocab_size, dtype, seed)


def test_extreme_logits_equal_the_definition(backend: Backend) -> None:
    """A row with the largest half-precision values, one with differences beyond the range of exp, one far below 0, one
    of equal values."""
    vocab_size = 3000
    logits, bias, _ = rows_of(5, vocab_size, torch.float32, backend.device)
    bias.zero_()
    logits[0] *= 2e4
    logits[1] = -torch.arange(logits.shape[1])
    logits[2] -= 6e4
    logits[3] = 1e9
    logits[4, 10:] = -torch.inf
    labels = torch.tensor([int(logits[0, :vocab_size].argmax()), 2999, 7, 0, 3], device=backend.device)
    exact_loss, exact_gradient = by_definition(logits[:, :vocab_size].double(), labels)
    loss = cross_entropy_(logits, bias, labels, vocab_size)
    torch.testing.assert_close(loss, exact_loss.float(), rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(logits[:, :vocab_size], exact_gradient.float(), rtol=1e-4, atol=1e-6)
    assert logits[4, 10:].eq(0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_non_finite_row_gives_nan_and_does_not_affect_other_rows(
    backend: Backend, dtype: torch.dtype, sign: float
) -> None:
    vocab_size = 1003
    logits, bias, labels = rows_of(4, vocab_size, dtype, backend.device)
    bad = logits.clone()
    bad[1, 500] = math.copysign(math.nan, sign)
    bad[2, 1002] = math.inf
    good_loss = cross_entropy_(logits, bias, labels, vocab_size)
    loss = cross_entropy_(bad, bias, labels, vocab_size)
    assert loss.isnan().tolist() == [False, True, True, False]
    assert bad[1:3, :vocab_size].isnan().all()
    assert bad[:, vocab_size:].eq(0).all()
    assert torch.equal(loss[::3], good_loss[::3])
    assert torch.equal(bad[::3], logits[::3])


def test_a_row_does_not_depend_on_other_rows(backend: Backend) -> None:
    vocab_size = 5001
    logits, bias, labels = rows_of(7, vocab_size, torch.bfloat16, backend.device)
    again, alone = logits.clone(), logits[4:5].clone()
    loss = cross_entropy_(logits, bias, labels, vocab_size)
    assert torch.equal(cross_entropy_(again, bias, labels, vocab_size), loss)
    assert torch.equal(cross_entropy_(alone, bias, labels[4:5], vocab_size), loss[4:5])
    assert torch.equal(again, logits)
    assert torch.equal(alone[0], logits[4])


@pytest.mark.parametrize("label", [-100, -1, 100, 127, 2**40])
def test_a_label_out_of_range_is_an_error_on_the_cpu_and_nan_elsewhere(backend: Backend, label: int) -> None:
    logits, bias, labels = rows_of(5, 100, torch.float32, backend.device)
    alone = logits.clone()
    good = cross_entropy_(alone, bias, labels, 100)
    labels[1] = label
    if backend.name in ("reference", "cpu"):
        with pytest.raises(RuntimeError, match=f"labels: row 1 has {label}, expected 0 to 99"):
            cross_entropy_(logits, bias, labels, 100)
        return
    loss = cross_entropy_(logits, bias, labels, 100)
    others = [0, 2, 3, 4]  # the harness has two multiprocessors, so row 3 follows row 1 in the same block
    assert loss.isnan().tolist() == [False, True, False, False, False]
    assert not logits[1].any()
    assert torch.equal(loss[others], good[others])
    assert torch.equal(logits[others], alone[others])


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_more_logits_than_32_bits_can_count(backend: Backend) -> None:
    if backend.slow or backend.name == "reference":
        pytest.skip("too slow")
    if free_bytes(backend.device) < 12 << 30:
        pytest.skip("needs 4.3 GB in one piece")
    rows, stride = 8, (1 << 28) + 64
    logits = torch.zeros(rows, stride, dtype=torch.bfloat16, device=backend.device)
    assert logits.numel() > 2**31
    labels = torch.arange(rows, device=backend.device)
    loss = cross_entropy_(logits, logits.new_zeros(stride), labels, 100)
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(100)))
    found = logits[:, :100].float()
    torch.testing.assert_close(found, 0.01 - torch.eye(rows, 100, device=backend.device), rtol=0, atol=4e-3)


Inputs = tuple[Tensor | None, ...]  # hidden, weight, bias, labels


def head_of(
    rows: int, vocab_size: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, hidden, generator=g)
    weight = torch.randn(vocab_size, hidden, generator=g) * 2 * hidden**-0.5
    bias = torch.randn(vocab_size, generator=g)
    labels = torch.randint(vocab_size, (rows,), generator=g)
    x, weight, bias = (part.to(device, dtype).requires_grad_() for part in (x, weight, bias))
    return x, weight, bias, labels.to(device)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The usual PyTorch code; fp64 stays fp64."""
    logits = F.linear(hidden, weight, bias)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), labels, reduction="sum")


def with_gradients(loss_of: Callable[..., Tensor], inputs: Inputs, scale: float = 1.0) -> list[Tensor]:
    *parts, labels = inputs
    fresh = [None if x is None else x.detach().requires_grad_() for x in parts]
    loss = loss_of(*fresh, labels)
    return [loss.detach(), *torch.autograd.grad(loss * scale, [x for x in fresh if x is not None])]


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_head_is_as_accurate_as_plain_pytorch(
    backend: Backend, dtype: torch.dtype, with_bias: bool, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_ROWS", 8)
    x, weight, bias, labels = head_of(24 if backend.slow else 64, 999, 48, dtype, backend.device)
    inputs = (x, weight, bias if with_bias else None, labels)
    budget = len(labels) // chunks * 1024 * dtype.itemsize
    exact = with_gradients(plain, tuple(p.double() if p is not None and p is not labels else p for p in inputs), 0.37)
    expected = with_gradients(plain, inputs, 0.37)
    found = with_gradients(functools.partial(masked_lm_loss, budget_bytes=budget), inputs, 0.37)
    assert found[0].dtype == torch.float32
    assert len(found) == (4 if with_bias else 3)
    for values in (exact, expected, found):
        values[0] /= len(labels)  # the rule is for the mean, because the last bit of the sum is 6e-5
    for ours, theirs, truth, factor in zip(found, expected, exact, [2, 3, 3, 3], strict=False):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) <= factor * error(theirs, truth) + 1e-5


@pytest.mark.parametrize(("vocab_size", "dtype"), REAL)
def test_the_head_is_accurate_with_real_vocabularies(backend: Backend, vocab_size: int, dtype: torch.dtype) -> None:
    *parts, labels = head_of(3, vocab_size, 8, dtype, backend.device)
    labels[0] = vocab_size - 1
    exact = with_gradients(plain, (*(part.double() for part in parts), labels))
    expected = with_gradients(plain, (*parts, labels))
    found = with_gradients(masked_lm_loss, (*parts, labels))
    for values in (exact, expected, found):
        values[0] /= len(labels)
    for ours, theirs, truth, factor in zip(found, expected, exact, [2, 3, 3, 3], strict=True):
        assert error(ours, truth) <= factor * error(theirs, truth) + 1e-5


@pytest.mark.parametrize("rows", [1, 1023, 1024, 2500, 4100])
def test_chunks_fit_the_budget_and_have_a_minimum_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def spy(logits: Tensor, bias: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
        seen.append((len(logits), logits.untyped_storage().nbytes()))
        return cross_entropy_(logits, bias, labels, vocab_size)

    monkeypatch.setattr(module, "_cross_entropy", spy)
    inputs = head_of(rows, 70, 4, torch.float32, torch.device("cpu"))
    with library.using("reference"):
        for budget in [1, 1500 * 512, 1 << 30]:
            seen.clear()
            masked_lm_loss(*inputs, budget_bytes=budget)
            most = max(1024, budget // 512)
            assert sum(n for n, _ in seen) == rows
            assert all(nbytes <= most * 512 for _, nbytes in seen)
            assert all(n >= min(rows, 1024) // 2 for n, _ in seen)
            assert len(seen) == math.ceil(rows / most)


def test_the_loss_is_the_sum_of_negative_log_probabilities(backend: Backend) -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 10, 3, 3, 7])
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    expected = math.fsum(math.log(math.fsum(map(math.exp, row))) - row[label] for row, label in rows)
    found = masked_lm_loss(logits.to(backend.device), torch.eye(11).to(backend.device), None, labels.to(backend.device))
    assert math.isclose(float(found), expected, rel_tol=1e-6)


def test_autocast_equals_a_cast_of_the_arguments(backend: Backend) -> None:
    inputs = head_of(24, 70, 16, torch.float32, backend.device)

    def cast(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return masked_lm_loss(h.bfloat16(), w.bfloat16(), b.bfloat16(), y)

    def automatic(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(h.device.type, torch.bfloat16):
            return masked_lm_loss(h, w, b, y)

    expected, found = (with_gradients(loss_of, inputs) for loss_of in (cast, automatic))
    assert all(torch.equal(*each) for each in zip(expected, found, strict=True))
    assert {g.dtype for g in found} == {torch.float32}


def test_no_masked_position_gives_a_loss_of_0_with_gradients(backend: Backend) -> None:
    found = with_gradients(masked_lm_loss, head_of(0, 70, 8, torch.bfloat16, backend.device))
    assert float(found[0]) == 0
    assert [tuple(x.shape) for x in found[1:]] == [(0, 8), (70, 8), (70,)]
    assert not any(x.any() for x in found)


def test_only_requested_gradients_are_computed(backend: Backend) -> None:
    x, weight, bias, labels = head_of(6, 70, 8, torch.float32, backend.device)
    expected = with_gradients(masked_lm_loss, (x, weight, bias, labels))
    (only,) = torch.autograd.grad(masked_lm_loss(x.detach(), weight, bias.detach(), labels), weight)
    assert torch.equal(only, expected[2])
    with torch.no_grad():
        loss = masked_lm_loss(x, weight, bias, labels)
    assert not loss.requires_grad
    assert torch.equal(loss, expected[0])
    loss = masked_lm_loss(x, weight, bias, labels)
    for _ in range(2):  # the saved gradients are not modified
        again = torch.autograd.grad(loss, [x, weight, bias], retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(again, expected[1:], strict=True))


@pytest.mark.parametrize("chunks", [1, 2])
def test_gradients_agree_with_finite_differences(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_ROWS", 1)
    *inputs, labels = head_of(4, 7, 3, torch.float32, torch.device("cpu"))
    budget = 4 // chunks * 64 * 8

    def loss_of(*parts: Tensor) -> Tensor:
        loss: Tensor = module._MaskedLmLoss.apply(*parts, labels, budget, True)
        return loss

    with library.using("reference"):
        assert torch.autograd.gradcheck(loss_of, [x.detach().double().requires_grad_() for x in inputs])


BAD: dict[str, tuple[type[Exception], Callable[..., tuple[Any, ...]]]] = {
    "hidden.*float64": (TypeError, lambda x, w, b, y: (x.double(), w, b, y)),
    "hidden.*shape": (ValueError, lambda x, w, b, y: (x[0], w, b, y)),
    "weight.*float16, expected torch.float32": (TypeError, lambda x, w, b, y: (x, w.half(), b, y)),
    "weight.*shape": (ValueError, lambda x, w, b, y: (x, w[:, 1:].contiguous(), b, y)),
    "weight.*contiguous": (ValueError, lambda x, w, b, y: (x, w.t().contiguous().t(), b, y)),
    "bias.*shape": (ValueError, lambda x, w, b, y: (x, w, b[1:], y)),
    "bias.*bfloat16": (TypeError, lambda x, w, b, y: (x, w, b.bfloat16(), y)),
    "labels.*int32": (TypeError, lambda x, w, b, y: (x, w, b, y.int())),
    "labels.*shape": (ValueError, lambda x, w, b, y: (x, w, b, y[1:])),
    "budget_bytes": (ValueError, lambda x, w, b, y: (x, w, b, y, 0)),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_named(name: str) -> None:
    kind, spoil = BAD[name]
    with pytest.raises(kind, match=name):
        masked_lm_loss(*spoil(*head_of(5, 70, 8, torch.float32, torch.device("cpu"))))


BAD_ROWS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "logits.*Double": lambda z, b, y: (z.double(), b, y, 100),
    "logits.*contiguous": lambda z, b, y: (z.t().contiguous().t(), b, y, 100),
    "logits.*multiple of 64": lambda z, b, y: (z[:, :100].contiguous(), b[:100], y, 100),
    "logits.*multiple of 16": lambda z, b, y: (z.flatten()[1:-127].view(2, 128), b, y[1:], 100),
    "vocab_size: found 0": lambda z, b, y: (z, b, y, 0),
    "vocab_size: found 129": lambda z, b, y: (z, b, y, 129),
    "bias.*shape": lambda z, b, y: (z, b[:100], y, 100),
    "bias.*Half, expected Float": lambda z, b, y: (z, b.half(), y, 100),
    "bias.*multiple of 16": lambda z, b, y: (z, torch.cat([b, b])[1:129], y, 100),
    "labels.*shape": lambda z, b, y: (z, b, y[1:], 100),
    "labels.*Int": lambda z, b, y: (z, b, y.int(), 100),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_invalid_rows_are_named_by_the_kernels(backend: Backend, name: str) -> None:
    if backend.name == "reference":
        pytest.skip("PyTorch's own errors")
    with pytest.raises(RuntimeError, match=name):
        cross_entropy_(*BAD_ROWS[name](*rows_of(3, 100, torch.float32, backend.device)))


def test_the_operator_passes_opcheck(backend: Backend) -> None:
    logits, bias, labels = rows_of(3, 100, torch.bfloat16, backend.device)
    logits[:, 100:] = 0  # opcheck compares copies of its arguments, and NaN is not equal to itself
    bias[100:] = 0
    namespace = "ppa_fast" if backend.name == "reference" else backend.namespace
    op = getattr(torch.ops, namespace).cross_entropy_.default
    torch.library.opcheck(op, (logits, bias, labels, 100))
