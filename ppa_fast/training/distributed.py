"""The process group of a run: started by the deepspeed launcher, torchrun or by hand, or alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.data.workers import available_cores
from ppa_fast.errors import UserError
from ppa_fast.noise import builds_quietly


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started() -> Iterator[torch.device]:
    """Joins (or, alone, makes) the process group and gives this rank's device.

    Raises:
        UserError: on a CPU, without the compiler that DeepSpeed needs there.
    """
    alone = {}
    if "WORLD_SIZE" not in os.environ:
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ.update({name: str(value) for name, value in alone.items()})
    try:
        yield _join()
    finally:
        for name in alone:  # or what a notebook starts next would take itself for a rank
            del os.environ[name]


def _join() -> torch.device:
    # Ranks that share a host's cores must not each start a thread for every core.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, available_cores() // local))
    import deepspeed  # here: it takes seconds, and mistakes in the settings are told before

    if deepspeed.get_accelerator().device_name() == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("training on a CPU: found no g++, which DeepSpeed compiles its collectives with at start")
        # Where its launcher says that all ranks share a host, DeepSpeed makes buffers for an all-reduce that training
        # never calls: 66 MiB a rank that stay in /dev/shm, and a wait for the other ranks that nothing can end.
        os.environ.pop("LOCAL_SIZE", None)
    with builds_quietly():
        deepspeed.init_distributed()
    # DeepSpeed's choice (DS_ACCELERATOR=cpu stays off a GPU that is there), or it and the model would part.
    return torch.device(deepspeed.get_accelerator().device_name(local_rank()))


def concatenate_over_ranks(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """The ranks' tensors (``counts``: rows of each) one after another along the first dimension, on every rank."""
    parts = [tensor.new_empty(max(counts), *tensor.shape[1:]) for _ in counts]
    padded = tensor.new_zeros(parts[0].shape)
    padded[: len(tensor)] = tensor
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class StopSignal:
    """Notes SIGTERM and SIGUSR1. The ranks agree on stopping at the end of a step; until then nothing is disturbed."""

    def __init__(self) -> None:
        self.noted = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
