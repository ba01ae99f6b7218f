"""Helpers of the training tests: run jobs on one or several ranks, and read their outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ppa_fast.settings import Settings
from ppa_fast.training import distributed, preflight
from ppa_fast.training.trainer import Trainer, train

RANKS = Path(__file__).with_name("ranks.py")


def start_ranks(
    command: list[str], world_size: int, threads: int = 1, device: str = "cpu"
) -> list[subprocess.Popen[str]]:
    """Starts ``python <command>`` as ``world_size`` ranks on the CPU or on CUDA; the stderr of each rank is kept."""
    shared = {
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": distributed.free_port(),
        "OMP_NUM_THREADS": threads,
        "DS_ACCELERATOR": device,
    }
    shared["LOCAL_WORLD_SIZE"] = world_size
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def run_ranks(jobs: list[dict[str, Any]], world_size: int, folder: Path, device: str = "cpu") -> None:
    """Runs jobs (settings) on ``world_size`` ranks, in order, and waits for them."""
    path = folder / f"jobs-{device}-{world_size}.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    ranks = start_ranks([str(RANKS), str(path)], world_size, device=device)
    outputs = [process.communicate(timeout=600) for process in ranks]
    for process, (_, errors) in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]


def run_here(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job in this process, as a single rank."""
    with one_thread():
        return train(Settings(**job))


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def trainer_here(job: dict[str, Any]) -> Iterator[Trainer]:
    """The trainer of a job in this process, as a single rank, ready for its first step."""
    with one_thread(), distributed.started() as device:
        trainer = Trainer(preflight.check(Settings(**job), 1), device)
        try:
            yield trainer
        finally:
            trainer.close()


def tensors(run: str | Path, step: int, name: str) -> dict[str, Tensor]:
    return load_file(Path(run) / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def metrics(run: str | Path) -> list[dict[str, Any]]:
    """Returns metrics.jsonl without time and memory values."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s") and k != "memory_gib"} for line in lines]


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
