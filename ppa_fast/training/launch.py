"""``ppa-fast train``: builds the training command for this machine, prints it, runs it and forwards signals."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch

from ppa_fast.console import debug
from ppa_fast.errors import UserError
from ppa_fast.settings import LaunchSettings, Settings
from ppa_fast.training import preflight
from ppa_fast.training.config import uses_cuda
from ppa_fast.training.distributed import free_port

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Placement:
    """Where a run executes: the total number of ranks, the arguments of the deepspeed command, and the default file of
    ds_configs/. If ``launcher`` is empty, the single rank runs without the deepspeed command."""

    ranks: int
    launcher: tuple[str, ...]
    config: str


def place(options: LaunchSettings) -> Placement:
    """Places the ranks: ``num_gpus`` or all GPUs of this machine, one rank without GPUs, or the nodes of a hostfile.

    Raises UserError for more ranks than GPUs and for an invalid hostfile.
    """
    if options.hostfile is not None:
        return Placement(_slots(options.hostfile), ("--hostfile", str(options.hostfile)), "gpu8.json")
    found = torch.cuda.device_count() if uses_cuda() else 0
    ranks = options.num_gpus or max(1, found)
    if 0 < found < ranks:
        raise UserError(f"--num-gpus: found {ranks}, expected 1 to {found}")
    if not found and ranks == 1:
        return Placement(1, (), "cpu.json")
    # With --num_gpus the launcher ignores CUDA_VISIBLE_DEVICES and takes the first GPUs of the machine.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if found else ""
    where = (
        ("--include", f"localhost:{','.join(visible.split(',')[:ranks])}") if visible else ("--num_gpus", str(ranks))
    )
    config = "cpu.json" if not found else "gpu1.json" if ranks == 1 else "gpu8.json"
    return Placement(ranks, (*where, "--master_port", str(free_port())), config)


def _slots(hostfile: str | Path) -> int:
    try:
        text = Path(hostfile).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {hostfile}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    slots = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r"\S+\s+slots=(\d+)\s*", line)
            if not found:
                raise UserError(f"{hostfile}:{number}: found {line!r}, expected a line such as 'node1 slots=8'")
            slots += int(found[1])
    if not slots:
        raise UserError(f"--hostfile {hostfile}: found no node, expected lines such as 'node1 slots=8'")
    return slots


def launch(settings: Settings, flags: Sequence[str], options: LaunchSettings) -> int:
    """Runs ``train.py FLAGS`` with one rank per GPU; returns the exit status.

    ``settings`` are parsed from ``flags``. Defaults are added for a missing DeepSpeed file (by the number of ranks) and
    a missing output (``runs/MODEL``). On SIGTERM, SIGUSR1, SIGHUP or Ctrl-C the ranks finish the step, save and exit
    with status 0; a second Ctrl-C kills them.

    Raises UserError if ``preflight.check`` fails. With a hostfile the check runs on the nodes instead.
    """
    if "RANK" in os.environ:
        raise UserError(
            f"RANK: found {os.environ['RANK']!r}, expected it unset, because ppa-fast train starts the ranks itself; "
            "unset RANK, or run ppa_fast/train.py in each rank"
        )
    settings.require("model", "data")
    placement = place(options)
    added: dict[str, Any] = {}
    if not settings.deepspeed_config:
        added["deepspeed_config"] = _display_path(PACKAGE / "ds_configs" / placement.config)
    if not settings.output:
        added["output"] = f"runs/{Path(settings.model).name}"
    quiet = () if debug() else ("--quiet",)
    program = ("deepspeed", *quiet, *placement.launcher) if placement.launcher else ("python",)
    words = [
        *program,
        _display_path(PACKAGE / "train.py"),
        *(f"--{name}={value}" for name, value in added.items()),
        *flags,
    ]
    if options.dry_run:
        print(shlex.join(words))
        return 0
    if options.hostfile is None:
        preflight.check(settings.replaced(**added), placement.ranks)
    log.info(f"$ {shlex.join(words)}")
    return _run(words)


def _display_path(path: Path) -> str:
    """The path as a user would type it: relative if it is below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _run(words: list[str]) -> int:
    """Runs a command until it exits and forwards stop signals to it; returns the exit status."""
    program = Path(sys.executable) if words[0] == "python" else Path(sys.executable).parent / words[0]
    if not program.exists():  # not installed in this environment: search the PATH
        program = Path(shutil.which(words[0]) or words[0])
    received: list[int] = []  # signal numbers
    # A new session, because the terminal's Ctrl-C would reach the launcher, which kills the ranks before they save.
    child = subprocess.Popen([str(program), *words[1:]], start_new_session=True)

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # the process has exited
            if received.count(signal.SIGINT) > 1:
                os.killpg(child.pid, signal.SIGKILL)
                return
            log.info("stopping: the ranks finish the current step and save; press Ctrl-C again to kill them")
            ranks = _ranks(words)
            for process in ranks:
                process.send_signal(signal.SIGTERM)
            if not ranks:  # a single rank without a launcher, or a launcher that has not started its ranks yet
                os.killpg(child.pid, signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # such as SIGHUP under nohup
            signal.signal(number, stop)
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status and received:  # the signal arrived before the ranks could handle it
        return 128 + received[0]
    return 128 - status if status < 0 else status


def _ranks(words: list[str]) -> list[psutil.Process]:
    """The ranks on this machine: the processes that the launcher started with these arguments and RANK set.

    With several nodes, the ranks of this node suffice: when one rank stops, all ranks stop.
    """
    script = next(number for number, word in enumerate(words) if word.endswith("train.py"))
    flags = words[script + 1 :]
    found = {
        process.pid: process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["cmdline"] or [])[-len(flags) :] == flags and "RANK" in (process.info["environ"] or {})
    }
    return [process for process in found.values() if process.ppid() not in found]  # not the ranks' children
