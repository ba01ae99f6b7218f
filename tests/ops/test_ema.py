"""The momentum update is fmaf, bit for bit."""

import ctypes
import ctypes.util

import pytest
import torch

from ppa_fast.ops.ema import ema_

libm = ctypes.CDLL(ctypes.util.find_library("m"))
libm.fmaf.restype = ctypes.c_float
libm.fmaf.argtypes = [ctypes.c_float] * 3


@pytest.mark.parametrize("n", [1, 7, 31, 4099])
@pytest.mark.parametrize("momentum", [0.999, 0.99, 0.5, 0.0, 1.0])
def test_bit_equal_to_fmaf(n, momentum):
    generator = torch.Generator().manual_seed(n)
    k, q = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
    moved = (q * torch.tensor(1.0 - momentum)).tolist()
    expected = [libm.fmaf(momentum, old, new) for old, new in zip(k.tolist(), moved, strict=True)]
    ema_(k, q, momentum)
    assert k.tolist() == expected


def test_separate_rounding_would_differ():
    # Guards the test above: on these values a multiply and an add, each rounded, do not give fmaf's bits.
    generator = torch.Generator().manual_seed(4099)
    k, q = torch.randn(4099, generator=generator), torch.randn(4099, generator=generator)
    separate = k * 0.999 + q * (1.0 - 0.999)
    ema_(k, q, 0.999)
    assert 0 < int((separate != k).sum()) < 4099


def test_parts_equal_the_whole():
    generator = torch.Generator().manual_seed(0)
    k, q = torch.randn(1001, generator=generator), torch.randn(1001, generator=generator)
    parts = [(k[s].clone(), q[s].clone()) for s in (slice(0, 13), slice(13, 500), slice(500, 1001))]
    ema_(k, q, 0.999)
    for part, source in parts:
        ema_(part, source, 0.999)
    assert torch.equal(k, torch.cat([part for part, _ in parts]))
