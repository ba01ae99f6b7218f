"""Script of test_no_sync: ``python no_sync.py JOB.json`` runs steps in which a synchronization is an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from ppa_fast.settings import Settings
from ppa_fast.training import distributed, preflight
from ppa_fast.training.trainer import Trainer


@contextmanager
def waiting(mode: str) -> Iterator[None]:
    """``mode``: "error" or "default". The debug mode does not detect ``torch.cuda.synchronize``."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    synchronize = mock.Mock(side_effect=AssertionError("synchronize")) if mode == "error" else torch.cuda.synchronize
    with mock.patch("torch.cuda.synchronize", synchronize):
        yield
    torch.cuda.set_sync_debug_mode(before)


def main(job: dict) -> None:
    with distributed.started() as device:
        check(job, device)


def check(job: dict, device: torch.device) -> None:
    assert device.type == "cuda", device
    trainer = Trainer(preflight.check(Settings(**job), 1), device)
    synchronize, optimizer_step = torch.cuda.synchronize, trainer.training_step.masters.step

    def step(lr: float) -> tuple[bool, float]:
        with waiting("default"), mock.patch("torch.cuda.synchronize", synchronize):
            return optimizer_step(lr)  # DeepSpeed reads the norm

    trainer.training_step.masters.step = step  # type: ignore[method-assign]
    trainer.train_step().read()  # the first step loads kernels and libraries, and allocates buffers
    for _ in range(3):
        with waiting("error"):
            figures = trainer.train_step()
        assert figures.read()["applied"]
    trainer.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
