"""``ppa-fast train``: the command that trains on this machine; it is printed, started, and told when to stop."""

from __future__ import annotations

import dataclasses
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

from ppa_fast.errors import UserError
from ppa_fast.noise import debug
from ppa_fast.progress import note
from ppa_fast.settings import Settings
from ppa_fast.training.config import uses_cuda
from ppa_fast.training.distributed import free_port
from ppa_fast.training.plan import make_plan

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Placement:
    """Where a run goes: how many ranks there are in all, how the deepspeed command is told, and the file of
    ds_configs/ that fits. Without a launcher the one rank is started as it is."""

    ranks: int
    launcher: tuple[str, ...]
    config: str


def place(num_gpus: int | None = None, hostfile: str | None = None) -> Placement:
    """All GPUs of this machine, or ``num_gpus`` ranks; one rank without GPUs; the nodes of a hostfile.

    Raises UserError for more ranks than GPUs and for a hostfile that is none.
    """
    if hostfile is not None:
        return Placement(_slots(hostfile), ("--hostfile", hostfile), "gpu8.json")
    found = torch.cuda.device_count() if uses_cuda() else 0
    ranks = max(1, found) if num_gpus is None else num_gpus
    if ranks < 1 or 0 < found < ranks:
        raise UserError(f"--num-gpus {ranks}: expected {f'1 to {found}' if found else 'at least 1'}")
    if not found and ranks == 1:
        return Placement(1, (), "cpu.json")
    # Beside --num_gpus the launcher would not read CUDA_VISIBLE_DEVICES and take the first GPUs of the machine.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if found else ""
    where = (
        ("--include", f"localhost:{','.join(visible.split(',')[:ranks])}") if visible else ("--num_gpus", str(ranks))
    )
    config = "cpu.json" if not found else "gpu1.json" if ranks == 1 else "gpu8.json"
    return Placement(ranks, (*where, "--master_port", str(free_port())), config)


def _slots(hostfile: str) -> int:
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
        raise UserError(f"--hostfile {hostfile}: no node in there, expected lines such as 'node1 slots=8'")
    return slots


def launch(
    settings: Settings,
    flags: Sequence[str],
    num_gpus: int | None = None,
    hostfile: str | None = None,
    dry_run: bool = False,
) -> int:
    """Runs ``train.py FLAGS`` in as many ranks as there are GPUs; returns the exit status.

    ``settings`` are those that ``flags`` give. What they leave open is added: the DeepSpeed file for so many ranks, and
    ``runs/MODEL`` as the output. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C let the ranks finish the step, save and
    exit 0; a second Ctrl-C kills them.

    Args:
        num_gpus: the ranks; None is one for each GPU.
        hostfile: the nodes of the run instead.
        dry_run: prints the command and runs nothing.

    Raises UserError for anything that can be known before the start, see ``plan.make_plan``; the nodes of a hostfile
    find that out themselves.
    """
    if "RANK" in os.environ:
        raise UserError(
            "RANK is set: this is a rank of a run already; expected ppa_fast/train.py here, as in the README"
        )
    settings.require("model", "data")
    placement = place(num_gpus, hostfile)
    added: dict[str, Any] = {}
    if not settings.deepspeed_config:
        added["deepspeed_config"] = _shown(PACKAGE / "ds_configs" / placement.config)
    if not settings.output:
        added["output"] = f"runs/{Path(settings.model).name}"
    quiet = () if debug() else ("--quiet",)
    program = ("deepspeed", *quiet, *placement.launcher) if placement.launcher else ("python",)
    words = [*program, _shown(PACKAGE / "train.py"), *(f"--{name}={value}" for name, value in added.items()), *flags]
    if dry_run:
        print(shlex.join(words))
        return 0
    if hostfile is None:
        make_plan(dataclasses.replace(settings, **added), placement.ranks)
    note(f"$ {shlex.join(words)}")
    return _run(words)


def _shown(path: Path) -> str:
    """As a user would type it: relative where it lies below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _run(words: list[str]) -> int:
    """Runs a command to its end and passes on what should stop it; returns the exit status."""
    program = Path(sys.executable) if words[0] == "python" else Path(sys.executable).parent / words[0]
    if not program.exists():  # not of this environment: where the PATH has it
        program = Path(shutil.which(words[0]) or words[0])
    asked: list[int] = []  # the signals that came
    # A session of its own: the terminal's Ctrl-C would reach the launcher, which kills the ranks before they save.
    child = subprocess.Popen([str(program), *words[1:]], start_new_session=True)

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended by itself
            if asked.count(signal.SIGINT) > 1:
                os.killpg(child.pid, signal.SIGKILL)
                return
            note("stopping: the ranks finish the step and save; a second Ctrl-C kills them")
            ranks = _ranks(words)
            for process in ranks:
                process.send_signal(signal.SIGTERM)
            if not ranks:  # one rank without a launcher, or a launcher that has not started any
                os.killpg(child.pid, signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, stop)
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status and asked:  # before there was anything to save
        return 128 + asked[0]
    return 128 - status if status < 0 else status


def _ranks(words: list[str]) -> list[psutil.Process]:
    """The processes on this machine that the launcher has started ``words`` for: it gives each its RANK.

    Of several nodes' ranks those of this one; a rank that stops takes all others with it.
    """
    script = next(number for number, word in enumerate(words) if word.endswith("train.py"))
    flags = words[script + 1 :]
    found = {
        process.pid: process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["cmdline"] or [])[-len(flags) :] == flags and "RANK" in (process.info["environ"] or {})
    }
    return [process for process in found.values() if process.ppid() not in found]  # no helpers that a rank has forked
