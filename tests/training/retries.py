r"""Runs that fail or are killed: ``python retries.py ATTEMPTS.json RESULTS.json``, and :func:`attempt`, which starts
it.

An attempt is a dict: ``job`` (settings of a run), ``world``, ``faults`` (for each rank the name and the argument of a
fault, or None), ``kill_after`` (SIGKILL to all ranks, this number of seconds after they resumed from a checkpoint).

Python, torch and DeepSpeed are imported once, and the ranks of every attempt are forked, so that twenty attempts take
little time. This process starts no thread and runs no operation of torch, which makes forking safe.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}


def attempt(attempts: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Makes the attempts in order. Returns for each: ``statuses`` by rank (minus the signal for a killed rank),
    ``errors`` (stderr by rank), ``seconds``, and ``latest`` of the run afterwards."""
    folder.mkdir()
    (folder / "attempts.json").write_text(json.dumps(attempts), encoding="utf-8")
    command = [sys.executable, __file__, str(folder / "attempts.json"), str(folder / "results.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=900)
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


# Faults. Each function is called in its rank before the run, with its argument.


def kill_all_at_file_event(number: int, run: str) -> None:
    """Sends SIGKILL to all ranks just before this rank changes a file of the run for the ``number``-th time."""
    left = [number]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        name = os.fspath(arguments[0])
        reads = event == "open" and arguments[1] in ("r", "rb")
        if not reads and (name.startswith(run) or not name.startswith("/")):  # rmtree uses relative names
            left[0] -= 1
            if left[0] == 0:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


def kill_all_before(event: str, run: str) -> None:
    """Sends SIGKILL to all ranks just before the first event that matches a pattern, such as ``os.rename SOURCE
    TARGET``."""

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name in FILE_EVENTS and re.search(event, " ".join(map(str, (name, *arguments[:2])))):
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


def at_call(module: Any, name: str, number: int, do: Callable[[], Any]) -> None:
    original, left = getattr(module, name), [number]

    def replacement(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            do()
        return original(*arguments, **options)

    setattr(module, name, replacement)


def at_micro_batch(number: int, do: Callable[[], Any]) -> None:
    import ppa_fast.training.step

    at_call(ppa_fast.training.step, "objective", number, do)


def killed(number: int, run: str) -> None:
    at_micro_batch(number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def crashes(number: int, run: str) -> None:
    at_micro_batch(number, lambda: os.kill(os.getpid(), signal.SIGSEGV))


def raises(number: int, run: str) -> None:
    at_micro_batch(number, lambda: _raise(RuntimeError("no such luck")))


def bad_input(number: int, run: str) -> None:
    from ppa_fast.errors import UserError

    at_micro_batch(number, lambda: _raise(UserError("data: row 7: not a row")))


def waits(number: int, run: str) -> None:
    """The main thread hangs where no exception can interrupt it, as in a collective of NCCL."""
    at_micro_batch(number, lambda: threading.Event().wait())


def stopped(seconds: float, run: str) -> None:
    """Stops for a while at the third micro-batch, then continues."""

    def stop() -> None:
        awakened = os.getpid()
        if os.fork() == 0:
            time.sleep(seconds)
            os.kill(awakened, signal.SIGCONT)
            os._exit(0)
        os.kill(awakened, signal.SIGSTOP)

    at_micro_batch(3, stop)


def file_size(limit: int, run: str) -> None:
    """No file can grow beyond ``limit`` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def no_permission(name: str, run: str) -> None:
    """Nothing can be created in a folder of the run, even by root."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and os.fspath(arguments[0]).startswith(f"{run}/{name}/"):
            raise PermissionError(13, "Permission denied", os.fspath(arguments[0]))

    sys.addaudithook(hook)


def _raise(error: Exception) -> NoReturn:
    raise error


# The ranks.


def run_attempt(
    job: dict[str, Any], world: int, faults: list[Any] | None = None, kill_after: float | None = None
) -> Any:
    from ppa_fast.cli import main_train
    from ppa_fast.training.checkpoint import Checkpoints, check
    from ppa_fast.training.distributed import free_port

    run, settings = Path(job["output"]), Path(sys.argv[2] + ".settings")
    settings.write_text(json.dumps(job), encoding="utf-8")
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    began, pids, errors = time.monotonic(), [], [Path(sys.argv[2] + f".{rank}") for rank in range(world)]
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, pids[0] if pids else 0)
            shared |= {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in shared.items()})
            os.dup2(os.open(errors[rank], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            status = 1
            try:
                if faults and faults[rank]:
                    name, argument = faults[rank]
                    globals()[name](argument, str(run))
                status = main_train(["--settings", str(settings)])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
        os.setpgid(pid, pids[0])  # as in the child: the first one has an effect
    if kill_after is not None:
        while "resuming from" not in errors[0].read_text(encoding="utf-8"):
            assert os.waitpid(pids[0], os.WNOHANG) == (0, 0), errors[0].read_text(encoding="utf-8")
        time.sleep(kill_after)
        os.killpg(pids[0], signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    seconds = time.monotonic() - began
    latest = Checkpoints(run).named("latest")
    if latest is not None:
        check(latest)
    said = [path.read_text(encoding="utf-8") for path in errors]
    return {"statuses": statuses, "errors": said, "seconds": seconds, "latest": latest and latest.name}


def main() -> None:
    import_all()
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(names) == 1 + names.count("jemalloc_bg_thd"), f"found threads {names}, expected jemalloc's, which forks"
    gc.freeze()
    attempts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps([run_attempt(**each) for each in attempts]), encoding="utf-8")


def import_all() -> None:
    """Imports the modules that a rank imports at its start, and DeepSpeed modules that it imports indirectly."""
    for module in ("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer"):
        importlib.import_module(module)
    for module in ("transformers.models.bert.modeling_bert", "ppa_fast.training.trainer", "ppa_fast.cli"):
        importlib.import_module(module)
    importlib.import_module("deepspeed.comm.torch").build_shm_op()


if __name__ == "__main__":
    main()
