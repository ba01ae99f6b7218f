"""The backends on which the tests of every operation run. ``backend`` is the reference, native CPU or native CUDA. In
``python -m tests.csrc.simt`` it is the CUDA sources on the SIMT harness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ppa_fast.ops import library

SIMT = os.environ.get("PPA_FAST_TEST_SIMT")  # the library of the harness


@dataclass(frozen=True)
class Backend:
    """``namespace``: of the operators; ``device``: of the tensors; ``slow``: on the harness or under a sanitizer, where
    shapes must be small."""

    name: str
    namespace: str
    device: torch.device
    slow: bool = False


BACKENDS = {
    "reference": Backend("reference", "reference", torch.device("cpu")),
    "cpu": Backend("cpu", "ppa_fast", torch.device("cpu")),
    "cuda": Backend("cuda", "ppa_fast", torch.device("cuda"), slow="PPA_FAST_TEST_SMALL" in os.environ),
    "simt": Backend("simt", "ppa_fast_simt", torch.device("cpu"), slow=True),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = ["simt"] if SIMT else ["reference", "cpu", "cuda"]
        marks = {"cuda": [pytest.mark.gpu]}
        parameters = [pytest.param(name, marks=marks.get(name, [])) for name in names]
        metafunc.parametrize("backend", parameters, indirect=True)


products: list[torch.dtype] = []  # the types of the operands of every product


def mm_dtype_out(a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """``aten::mm.dtype_out``: a product of 16-bit matrices into fp32, which torch has only for CUDA."""
    assert a.dtype == b.dtype
    assert out_dtype == out.dtype == torch.float32
    products.append(a.dtype)
    return torch.mm(a.float(), b.float(), out=out)


@pytest.fixture(scope="session")
def simt() -> tuple[torch.library.Library, torch.library.Library]:
    """Loads the library of the harness, declares its operators, and gives the CPU the product that the kernels call."""
    assert SIMT
    torch.ops.load_library(SIMT)
    declared = torch.library.Library("ppa_fast_simt", "DEF")
    for op in library.OPERATIONS.values():
        library.declare(declared, op)
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("mm.dtype_out", mm_dtype_out, "CPU")
    return declared, aten


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    chosen = BACKENDS[request.param]
    if chosen.name == "simt":
        request.getfixturevalue("simt")
    elif chosen.name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    elif chosen.name != "reference" and library.why_not_native(chosen.name):
        pytest.skip(library.why_not_native(chosen.name))
    with library.using(chosen.namespace):
        yield chosen


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """On the CPU the operations divide their rows between threads; the results must not depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if SIMT else 2)
    yield
    torch.set_num_threads(before)
