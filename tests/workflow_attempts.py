"""``align`` again and again: ``python -m tests.workflow_attempts PLAN.json RESULTS.json``, and :func:`attempt`.

An attempt has ``arguments`` of ``ppa-fast``, and ``before``: a pattern of the file event before which the process is
killed, or None. Every attempt is forked from a process that has imported everything, and trains in its own process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def attempt(plan: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Makes the attempts in order; returns the ``status`` of each (-9: killed) and what it ``said`` on stderr."""
    files = [folder / "plan.json", folder / "results.json"]
    files[0].write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "-m", "tests.workflow_attempts", *map(str, files)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    results: list[dict[str, Any]] = json.loads(files[1].read_text(encoding="utf-8"))
    return results


def _run(arguments: list[str], before: str | None, said: Path) -> int:
    """One attempt, in a process of its own."""
    from ppa_fast import cli
    from ppa_fast.training import launch
    from tests.training.retries import kill_all_before

    os.setpgid(0, 0)
    for number, file in ((1, os.devnull), (2, said)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    if before:
        kill_all_before(before, "")

    def train_here(words: list[str]) -> int:
        script = next(number for number, word in enumerate(words) if word.endswith("train.py"))
        return cli.main_train(words[script + 1 :])

    launch._run = train_here
    return cli.main(arguments)


def main() -> None:
    from tests.training.retries import import_all

    import_all()
    importlib.import_module("ppa_fast.workflow")
    gc.freeze()
    results, said = [], Path(sys.argv[2] + ".stderr")
    for each in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _run(**each, said=said)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        results.append({"status": status, "said": said.read_text(encoding="utf-8")})
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
