"""The choice of the backend for the operations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from ppa_fast.ops import library
from ppa_fast.ops.ema import ema_

STATE = """
import torch
from ppa_fast.ops import library
from ppa_fast.ops.ema import ema_
k = torch.ones(3)
ema_([k], [torch.zeros(3)], [], 0.5)
print(library.backend("cpu"), k.tolist(), library.why_not_native("cpu"), sep="|")
"""


def state(cwd=library.PACKAGE.parent, **environment) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    return subprocess.run([sys.executable, "-c", STATE], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_reference_can_be_forced():
    assert state(PPA_FAST_BACKEND="reference").stdout == "reference|[0.5, 0.5, 0.5]|PPA_FAST_BACKEND=reference\n"


def test_an_unknown_backend_is_an_error():
    assert "PPA_FAST_BACKEND: found 'cuda', expected native or reference" in state(PPA_FAST_BACKEND="cuda").stderr


def test_the_package_works_without_libraries(tmp_path):
    shutil.copytree(library.PACKAGE, tmp_path / "ppa_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = state(tmp_path)
    assert done.stdout == "reference|[0.5, 0.5, 0.5]|_C.so is not built\n", done.stderr


def test_a_damaged_library_is_not_fatal(tmp_path):
    shutil.copytree(library.PACKAGE, tmp_path / "ppa_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "ppa_fast" / "_C.so").write_bytes(b"\x7fELF of another world")
    done = state(tmp_path)
    assert done.stdout.startswith("reference|[0.5, 0.5, 0.5]|_C.so cannot be loaded: "), done.stderr


def test_using_switches_the_backend_temporarily():
    seen = []
    op = library.Operation("ema_", "", lambda *arguments: seen.append(arguments), lambda *arguments: None)
    with library.using("reference"):
        assert library.backend("cpu") == "reference"
        op(1, 2)
    assert seen == [(1, 2)]
    k = torch.ones(1)
    ema_([k], [k * 3], [], 0.5)
    assert k.item() == 2.0


@pytest.mark.parametrize(
    ("capability", "served"),
    [((8, 0), True), ((8, 6), True), ((9, 0), True), ((7, 5), False), ((10, 0), True), ((12, 0), True)],
)
def test_a_library_supports_its_architectures_and_newer_ptx_devices(capability, served):
    assert library.serves("sm_80 sm_90 sm_100 compute_100", *capability) is served


def test_ptx_does_not_support_lower_capabilities():
    assert not library.serves("sm_90 compute_90", 8, 9)
    assert not library.serves("unknown (file too short)", 9, 0)
