"""The process group of a run: started by the deepspeed launcher, torchrun or by hand, or alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def start() -> torch.device:
    """Joins (or, alone, makes) the process group and returns this rank's device."""
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    # Ranks that share a host's cores must not each start a thread for every core.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    import deepspeed  # here: it takes seconds, and mistakes in the settings are told before

    deepspeed.init_distributed()
    # DeepSpeed's choice (DS_ACCELERATOR=cpu stays off a GPU that is there), or it and the model would part.
    return torch.device(deepspeed.get_accelerator().device_name(local_rank()))


def sum_over_ranks(values: Sequence[float | Tensor], device: torch.device) -> list[float]:
    """Each value summed over the ranks, in fp64, in one collective."""
    total = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    dist.all_reduce(total)
    return total.tolist()


def concatenate_over_ranks(tensor: Tensor) -> Tensor:
    """The ranks' tensors (equal shapes) one after another along the first dimension, on every rank."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


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
