from __future__ import annotations

import ctypes
import ctypes.util
import itertools

import pytest
import torch
from torch import Tensor

from ppa_fast.ops.ema import ema_
from ppa_fast.ops.library import OPERATIONS
from tests.ops.conftest import Backend

libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fmaf.restype = ctypes.c_float
libm.fmaf.argtypes = [ctypes.c_float] * 3


def fmaf(m: float, k: Tensor, q: Tensor) -> Tensor:
    """The definition, with the correctly rounded fused multiply-add of the C library."""
    rest = torch.tensor(1.0 - m, dtype=torch.float32)
    return torch.tensor([libm.fmaf(m, a, b) for a, b in zip(k.tolist(), (rest * q).tolist(), strict=True)])


def buffers(n: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g).to(device), (torch.randn(n, generator=g) * 100).to(device)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 31, 1024, 4099])
def test_the_update_equals_fmaf_bit_for_bit(backend: Backend, n: int, momentum: float) -> None:
    k, q = buffers(n, n, backend.device)
    expected = fmaf(momentum, k.cpu(), q.cpu())
    ema_([k], [q], [], momentum)
    assert torch.equal(k.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_working_copy_is_the_rounded_master(backend: Backend, dtype: torch.dtype) -> None:
    k, q = buffers(8195, 1, backend.device)
    k[:6] = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 65519.9, 1e-7])
    q[:6] = k[:6]
    working = torch.full(k.shape, torch.nan, dtype=dtype, device=backend.device)
    ema_([k], [q], [working], 0.999)
    torch.testing.assert_close(working, k.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_a_list_of_tensors_equals_separate_calls(backend: Backend) -> None:
    sizes = [5, 0, 4096, 1, 9000, *range(1, 70)]  # more tensors than one launch can take
    pairs = [buffers(n, n, backend.device) for n in sizes]
    alone = []
    for k, q in pairs:
        one = k.clone()
        if one.numel():
            ema_([one], [q], [], 0.99)
        alone.append(one)
    working = [torch.empty_like(k, dtype=torch.bfloat16) for k, _ in pairs]
    ema_([k for k, _ in pairs], [q for _, q in pairs], working, 0.99)
    for (k, _), copy, one in zip(pairs, working, alone, strict=True):
        assert torch.equal(k, one)
        assert torch.equal(copy, one.to(torch.bfloat16))


def test_unaligned_parts_equal_the_complete_update(backend: Backend) -> None:
    k, q = buffers(20_000, 3, backend.device)
    parts, copy = k.clone(), torch.empty_like(k, dtype=torch.bfloat16)
    cuts = [0, 3, 4100, 4101, 13_331, 20_000]
    spans = list(itertools.pairwise(cuts))
    ema_([parts[a:b] for a, b in spans], [q[a:b] for a, b in spans], [copy[a:b] for a, b in spans], 0.999)
    ema_([k], [q], [], 0.999)
    assert torch.equal(parts, k)
    assert torch.equal(copy, k.to(torch.bfloat16))


BAD = {
    "momentum": lambda k, q: ([k], [q], [], 1.5),
    "masters": lambda k, q: ([k.double()], [q], [], 0.9),
    "sources": lambda k, q: ([k], [q[:-1]], [], 0.9),
    "working": lambda k, q: ([k], [q], [k.int()], 0.9),
    "sources: found 0 tensors": lambda k, q: ([k], [], [], 0.9),
    "masters.*contiguous": lambda k, q: ([k[::2]], [q[::2]], [], 0.9),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_named(backend: Backend, name: str) -> None:
    arguments = BAD[name](*buffers(10, 0, backend.device))
    with pytest.raises((TypeError, ValueError), match=name):
        ema_(*arguments)
    if backend.name != "reference":  # the kernels check their arguments too
        with pytest.raises(RuntimeError, match=name):
            OPERATIONS["ema_"](*arguments)


def test_the_operator_passes_opcheck(backend: Backend) -> None:
    k, q = buffers(10, 0, backend.device)
    op = getattr(torch.ops, "ppa_fast" if backend.name == "reference" else backend.namespace).ema_.default
    torch.library.opcheck(op, ([k], [q], [k.bfloat16()], 0.9))
