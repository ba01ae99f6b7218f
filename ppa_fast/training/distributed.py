"""The process group of a run, started by the deepspeed launcher, by torchrun, by hand, or as a single process."""

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

from ppa_fast.console import builds_quietly
from ppa_fast.data.store.workers import available_cores
from ppa_fast.errors import UserError


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def free_port() -> int:
    """An unused TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def port_errors() -> Iterator[None]:
    """Converts the error of a rendezvous on a port that is in use into a UserError."""
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"MASTER_PORT: port {os.environ['MASTER_PORT']} of this machine is in use, expected a free port; set "
            "another one with --master_port or, without a launcher, with MASTER_PORT"
        ) from error


@contextmanager
def started() -> Iterator[torch.device]:
    """Joins the process group, or creates one for a single process; yields this rank's device.

    Raises:
        UserError: training on a CPU without g++, which DeepSpeed needs there; a folder for its build that cannot be
            written; or a port that is in use.
    """
    alone = {}
    if "WORLD_SIZE" not in os.environ:
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ.update({name: str(value) for name, value in alone.items()})
    try:
        yield _join()
    finally:
        for name in alone:  # otherwise a later run in this process would behave as a rank of this one
            del os.environ[name]


def _join() -> torch.device:
    # Ranks on the same host share its cores instead of each starting one thread per core.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, available_cores() // local))
    import deepspeed  # here: it takes seconds, and errors in the settings come first

    if deepspeed.get_accelerator().device_name() == "cpu":
        cxx = os.environ.get("CXX", "g++")
        if shutil.which(cxx) is None:
            raise UserError(
                f"{cxx}: not found, expected a C++ compiler, with which DeepSpeed compiles its collectives on a CPU; "
                "install it or set CXX"
            )
        # With LOCAL_SIZE set, DeepSpeed allocates buffers for a shared-memory all-reduce that training never calls:
        # 66 MiB per rank remain in /dev/shm, and the wait for the other ranks has no timeout.
        os.environ.pop("LOCAL_SIZE", None)
    with builds_quietly(), port_errors():
        try:
            deepspeed.init_distributed()
        except OSError as error:
            raise UserError(
                f"{error.filename}: {error.strerror}; DeepSpeed builds its operations there: set TORCH_EXTENSIONS_DIR "
                "to a folder that this user may write"
            ) from error
    # Follow DeepSpeed's choice, so that the model is on the same device: DS_ACCELERATOR=cpu ignores an available GPU.
    return torch.device(deepspeed.get_accelerator().device_name(local_rank()))


def concatenate_over_ranks(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """Concatenates the ranks' tensors along the first dimension, on every rank. ``counts``: rows of each rank."""
    parts = [tensor.new_empty(max(counts), *tensor.shape[1:]) for _ in counts]
    padded = tensor.new_zeros(parts[0].shape)
    padded[: len(tensor)] = tensor
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class StopSignal:
    """Records SIGTERM and SIGUSR1 without interrupting the step. The ranks agree to stop at the end of a step."""

    def __init__(self) -> None:
        self.received = False
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGUSR1)}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
