"""Runs every CUDA kernel on the CPU, thread by thread, under the sanitizers, with the tests of its operation."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.csrc import simt

KERNEL = re.compile(r"__global__\s+void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(")


def kernels() -> set[str]:
    """Returns the names of all ``__global__`` functions of the product."""
    found, marks = set(), 0
    for source in (simt.ROOT / "csrc" / "cuda").iterdir():
        text = source.read_text()
        marks += len(re.findall(r"^\s*(?:template.*\n)?__global__", text, re.MULTILINE))
        found |= set(KERNEL.findall(text))
    assert len(found) == marks > 0  # the pattern finds every kernel
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("order", ["forward", pytest.param("shuffle:1", marks=pytest.mark.slow)])
def test_every_kernel_passes_on_the_harness(order, tmp_path):
    simt.build()
    done = simt.run(["tests/ops"], order, tmp_path / "kernels.txt")
    assert done.returncode == 0
    ran = {name.rpartition("::")[2] for name in (tmp_path / "kernels.txt").read_text().split()}
    assert kernels() <= ran, "a kernel has no test on the harness"
