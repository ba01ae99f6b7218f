"""Registers, shared memory and spills of every kernel, compared with the checked-in table."""

from __future__ import annotations

import pytest

from tests.csrc import resources

LOG = """\
ptxas info    : Compiling entry function '_ZN3ppa4cuda10ema_kernelENS0_10EmaTensorsE' for 'sm_90'
ptxas info    : Function properties for _ZN3ppa4cuda10ema_kernelENS0_10EmaTensorsE
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1056 bytes smem, 3432 bytes cmem[0]
"""


def test_the_ptxas_log_is_parsed():
    entry = ("_ZN3ppa4cuda10ema_kernelENS0_10EmaTensorsE", "sm_90")
    assert resources.parse(LOG) == {entry: resources.Resources(40, 1056, 8, 16)}


@pytest.mark.skipif(not resources.available(), reason="the CUDA library was not built here (no nvcc)")
def test_every_kernel_matches_the_table():
    built, table = resources.built(), resources.table()
    architectures = {arch for _, arch in built}
    expected = {key: use for key, use in table.items() if key[1] in architectures}
    assert set(built) == set(expected), "run python -m tests.csrc.resources and look at what changed"
    for key, use in built.items():
        assert use.stack == use.spilled == 0, f"{key}: {use}"
        assert use.registers <= expected[key].registers, f"{key}: {use.registers} registers"
        assert use.shared <= expected[key].shared, f"{key}: {use.shared} bytes of shared memory"
