"""benchmarks/communication.py counts the elements of the collectives of a step."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from ppa_fast.training import distributed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def communication() -> Iterator[ModuleType]:
    """The script as a module, imported with its folder on the path."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("communication")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_collective_counts_its_larger_side(communication: ModuleType) -> None:
    with distributed.started(), communication.Collectives() as collectives:
        dist.all_reduce(torch.ones(7))
        dist.all_reduce(torch.ones(5))
        dist.all_reduce(torch.ones(3, dtype=torch.bfloat16))
        dist.all_gather([torch.empty(4)], torch.ones(4))
        torch.ones(9).sum()
    expected = {("allreduce", "float32"): [2, 12], ("allreduce", "bfloat16"): [1, 3], ("allgather", "float32"): [1, 4]}
    assert collectives.found == expected


@pytest.mark.slow
def test_the_volume_equals_the_documented_one(communication: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Stage 1, with any accumulation: weights and the momentum encoder's working copy in bf16, gradients in fp32."""
    assert communication.main(["--stages", "1", "--precisions", "bf16", "--accumulation", "1,2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    volume = [(line[0], line[1], line[4]) for line in lines if float(line[4]) > 0.1]
    assert volume == [("allgather_base", "bfloat16", "2.000"), ("reduce_scatter_base", "float32", "1.000")] * 2
