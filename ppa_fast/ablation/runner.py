"""``ppa-fast ablate``: runs every stage of a plan once, in sequence or in parallel, and writes the table."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppa_fast.ablation.picture import picture
from ppa_fast.ablation.plan import ROWS, Plan, check_rows, read_plan
from ppa_fast.ablation.report import collect, format_table, seeds_of
from ppa_fast.ablation.stages import Stage, seed_stages
from ppa_fast.data.store.workers import available_cores
from ppa_fast.errors import UserError, sigterm_as_exit
from ppa_fast.files import folder_lock, write_text
from ppa_fast.settings import AblateSettings, takes
from ppa_fast.training.checkpoint import Checkpoints, read_state

log = logging.getLogger(__name__)

JOURNAL = "stages.json"
TABLE = "table.md"


class Journal:
    """``OUT/stages.json``: the command and the duration in seconds of each finished stage, by name."""

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.done = json.loads(self.path.read_text(encoding="utf-8"))

    def has(self, stage: Stage) -> bool:
        """Whether a stage is finished; raises UserError if it was run with another command."""
        if stage.name not in self.done:
            return False
        command = self.done[stage.name]["command"]
        if command != stage.command:
            raise UserError(
                f"{self.path}: {stage.name}: found another command than the plan's, expected the same; "
                f"restore the plan or choose a new --out\n  done: {command}\n  plan: {stage.command}"
            )
        return True

    def add(self, stage: Stage, seconds: float) -> None:
        self.done[stage.name] = {"command": stage.command, "seconds": round(seconds, 1)}
        self.save()

    def save(self) -> None:
        write_text(self.path, json.dumps(self.done, indent=1, ensure_ascii=False) + "\n")


def _start(stage: Stage, lock: int, jobs: int, log: Path | None) -> subprocess.Popen[bytes]:
    """Starts a stage's command. Its output goes to this process's streams, or is appended to ``log``."""
    if stage.out.is_dir() and not stage.resumes:
        shutil.rmtree(stage.out)
    stage.out.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / stage.words[0]  # of this environment, even if it is not activated
    words = [str(program) if program.exists() else stage.words[0], *stage.words[1:]]
    # Jobs that each use all cores would wait for each other's threads.
    environment = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs)), **os.environ} if jobs > 1 else None
    with log.open("ab") if log else nullcontext() as output:
        if output:
            output.write(f"$ {stage.command}\n".encode())
            output.flush()
        return subprocess.Popen(words, pass_fds=[lock], stdout=output, stderr=output, env=environment)


def _check_end(stage: Stage, status: int, log: Path | None) -> None:
    """Raises UserError if a stage's command failed or did not finish."""
    if status:
        where = f"; see {log}" if log else ""
        raise UserError(f"{stage.name}: the command above failed with exit status {status}{where}")
    checkpoints = Checkpoints(stage.out)
    latest = checkpoints.named("latest") if checkpoints.folder.is_dir() else None
    if latest is not None:  # training that a signal stops exits with status 0
        state = read_state(latest)
        if state["step"] < state["steps"]:
            raise UserError(f"{stage.name}: stopped at step {state['step']} of {state['steps']}; run again to resume")


def run_stages(
    stages: Sequence[Stage], out: Path, jobs: int = 1, done: Callable[[Stage, Journal], object] = lambda *_: None
) -> None:
    """Runs the unfinished stages and records each in the journal, then calls ``done`` with the stage and the journal.

    Runs up to ``jobs`` stages in parallel, in the given order; a stage starts when the stages that it reads from are
    finished. With several jobs each command writes to ``NAME.log`` in ``out``. An interrupted stage is run again; if it
    cannot resume, its output is deleted first.

    Raises UserError for a stage that failed or was run with another command, and if another process uses ``out``. Other
    running stages are then terminated and run again the next time.
    """
    with folder_lock(out, "another ablation, or by a stage of one that was killed") as lock, sigterm_as_exit():
        journal = Journal(out)
        todo = [stage for stage in stages if not journal.has(stage)]
        total = len(todo)
        journal.save()
        running: dict[Future[int], tuple[Stage, subprocess.Popen[bytes], float]] = {}
        with ThreadPoolExecutor(jobs) as pool:  # one thread waits for each command
            try:
                while todo or running:
                    under_way = [stage for stage, _, _ in running.values()]
                    for stage in _ready(todo, under_way)[: jobs - len(running)]:
                        todo.remove(stage)
                        log.info(f"\n[{total - len(todo)} of {total}] {stage.name}\n$ {stage.command}")
                        child = _start(stage, lock, jobs, _log(stage, out, jobs))
                        running[pool.submit(child.wait)] = stage, child, time.monotonic()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        stage, _, start = running.pop(future)
                        _check_end(stage, future.result(), _log(stage, out, jobs))
                        journal.add(stage, time.monotonic() - start)
                        log.info(f"{stage.name}: {journal.done[stage.name]['seconds']:,} s")
                        done(stage, journal)
            except BaseException:
                for _, child, _ in running.values():
                    child.terminate()  # the pool then waits for the commands; training saves first
                raise


def _ready(todo: Sequence[Stage], under_way: Sequence[Stage]) -> list[Stage]:
    """The stages that do not read from an unfinished stage."""
    return [stage for stage in todo if not any(map(stage.reads, (*todo, *under_way)))]


def _log(stage: Stage, out: Path, jobs: int) -> Path | None:
    """The file for a command's output; None: this process's streams."""
    return out / f"{stage.name}.log" if jobs > 1 else None


def write_report(plan: Plan, out: Path) -> None:
    """Writes ``results.json``, ``table.md`` and ``picture.svg`` for all finished stages."""
    results = collect(plan, out)
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / TABLE, format_table(results))
    write_text(out / "picture.svg", picture(results))


@takes(AblateSettings)
def ablate(settings: AblateSettings) -> None:
    """Runs the ablation of a plan and writes its table.

    For each seed, pretrains the base model, aligns an encoder for each row that has an alignment, and runs the row's
    evaluations. Every stage is a public command, printed before it runs. Finished stages are not run again. After each
    seed, writes ``results.json``, ``table.md`` and ``picture.svg`` for all finished stages in ``out``.

    The arguments are the fields of :class:`AblateSettings`. With several ``jobs``, each stage writes to ``STAGE.log``
    in ``out`` and uses its share of the cores (``OMP_NUM_THREADS``, unless set). GPUs are not divided between jobs.

    Raises UserError for an invalid plan, before anything runs, and for a stage that failed.
    """
    read = read_plan(settings.plan)
    if settings.only is not None:
        check_rows(settings.only, "--only")
        read = replace(read, rows=tuple(settings.only))
    read = replace(read, seeds=settings.seeds or read.seeds)
    folder = Path(settings.out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).exists():
        raise UserError(f"--out {folder}: found a folder that is not an ablation's, expected a new name")
    by_seed = [list(seed_stages(read, read.rows, seed, folder)) for seed in range(read.seeds)]
    stages = list(dict.fromkeys(stage for of_seed in by_seed for stage in of_seed))
    journal = Journal(folder)
    for seed in seeds_of(folder):  # the table includes them, so their commands must match the plan
        for stage in seed_stages(read, tuple(ROWS), seed, folder):
            journal.has(stage)
    if settings.dry_run:
        for stage in stages:
            print(f"# {stage.name}{': done' if journal.has(stage) else ''}\n{stage.command}")
        return

    def done(stage: Stage, journal: Journal) -> None:
        if any(stage in of_seed and all(map(journal.has, of_seed)) for of_seed in by_seed):
            write_report(read, folder)

    run_stages(stages, folder, settings.jobs, done)
    write_report(read, folder)
    print(f"\n{(folder / TABLE).read_text(encoding='utf-8')}\nIn {folder}: results.json, {TABLE}, picture.svg")
