"""The backends that every operation's tests run on: ``backend`` is the reference, native CPU, native CUDA, or, in a run
of its own (``python -m tests.csrc.simt``), the CUDA sources on the SIMT harness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from ppa_fast.ops import library

SIMT = os.environ.get("PPA_FAST_TEST_SIMT")  # the harness's library


@dataclass(frozen=True)
class Backend:
    """``namespace``: of the operators; ``device``: of the tensors; ``slow``: on the harness or under a sanitizer: keep
    shapes small."""

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


@pytest.fixture(scope="session")
def simt() -> torch.library.Library:
    """Loads the harness's library and declares its operators."""
    assert SIMT
    torch.ops.load_library(SIMT)
    declared = torch.library.Library("ppa_fast_simt", "DEF")
    for op in library.OPERATIONS.values():
        library.declare(declared, op)
    return declared


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
    """On the CPU the operations share their rows out; the results must not depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if SIMT else 2)
    yield
    torch.set_num_threads(before)
