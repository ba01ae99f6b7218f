"""``ppa-fast ablate``: the stages of a plan, each once, one after the other or several at once; then the table."""

from __future__ import annotations

import json
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
from ppa_fast.data.workers import available_cores
from ppa_fast.errors import UserError, sigterm_as_exit
from ppa_fast.files import alone, write_text
from ppa_fast.progress import note
from ppa_fast.training.checkpoint import Checkpoints, read_state

JOURNAL = "stages.json"
TABLE = "table.md"


class Journal:
    """``OUT/stages.json``: the stages that are done, by name: their command, and how many seconds it took."""

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self.done = json.loads(self.path.read_text(encoding="utf-8"))

    def has(self, stage: Stage) -> bool:
        """Whether a stage is done; raises UserError where it was done by another command."""
        if stage.name not in self.done:
            return False
        command = self.done[stage.name]["command"]
        if command != stage.command:
            raise UserError(
                f"{self.path}: {stage.name} was made by another command than the plan's; expected the plan as it was, "
                f"or another --out\n  done: {command}\n  plan: {stage.command}"
            )
        return True

    def add(self, stage: Stage, seconds: float) -> None:
        self.done[stage.name] = {"command": stage.command, "seconds": round(seconds, 1)}
        self.save()

    def save(self) -> None:
        write_text(self.path, json.dumps(self.done, indent=1, ensure_ascii=False) + "\n")


def _start(stage: Stage, lock: int, jobs: int, log: Path | None) -> subprocess.Popen[bytes]:
    """Starts a stage's command. What it says goes to our own streams, or to the end of ``log``."""
    if stage.out.is_dir() and not stage.resumes:
        shutil.rmtree(stage.out)
    stage.out.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / stage.words[0]  # of this environment, activated or not
    words = [str(program) if program.exists() else stage.words[0], *stage.words[1:]]
    # Jobs that each take all cores wait for each other's threads.
    environment = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs)), **os.environ} if jobs > 1 else None
    with log.open("ab") if log else nullcontext() as output:
        if output:
            output.write(f"$ {stage.command}\n".encode())
            output.flush()
        return subprocess.Popen(words, pass_fds=[lock], stdout=output, stderr=output, env=environment)


def _check_end(stage: Stage, status: int, log: Path | None) -> None:
    """Raises UserError where a stage's command did not end in success."""
    if status:
        where = f"; what it said is in {log}" if log else ""
        raise UserError(f"{stage.name}: the command above ended with exit status {status}{where}")
    checkpoints = Checkpoints(stage.out)
    latest = checkpoints.named("latest") if checkpoints.folder.is_dir() else None
    if latest is not None:  # training: a signal stops it with status 0
        state = read_state(latest)
        if state["step"] < state["steps"]:
            raise UserError(f"{stage.name}: stopped at step {state['step']} of {state['steps']}; start again to go on")


def run_stages(
    stages: Sequence[Stage], out: Path, jobs: int = 1, done: Callable[[Stage, Journal], object] = lambda *_: None
) -> None:
    """Runs the stages that are not done and notes each in the journal, then calls ``done`` with both.

    Up to ``jobs`` are under way at once, begun in the order given, each when the stages that it reads from are done; of
    several, each one's command writes to ``NAME.log`` in ``out``. A stage that was cut off is started again: one that
    does not go on by itself without what it left. Raises UserError for a stage that failed or was done by another
    command, and where another process is at work in ``out``; the others under way are ended then, and go on the next
    time.
    """
    with alone(out, "another ablation, or by a stage that a killed one left") as lock, sigterm_as_exit():
        journal = Journal(out)
        todo = [stage for stage in stages if not journal.has(stage)]
        total = len(todo)
        journal.save()
        running: dict[Future[int], tuple[Stage, subprocess.Popen[bytes], float]] = {}
        with ThreadPoolExecutor(jobs) as pool:  # a thread waits for each command
            try:
                while todo or running:
                    under_way = [stage for stage, _, _ in running.values()]
                    for stage in _ready(todo, under_way)[: jobs - len(running)]:
                        todo.remove(stage)
                        note(f"\n[{total - len(todo)} of {total}] {stage.name}\n$ {stage.command}")
                        child = _start(stage, lock, jobs, _log(stage, out, jobs))
                        running[pool.submit(child.wait)] = stage, child, time.monotonic()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        stage, _, start = running.pop(future)
                        _check_end(stage, future.result(), _log(stage, out, jobs))
                        journal.add(stage, time.monotonic() - start)
                        note(f"{stage.name}: {journal.done[stage.name]['seconds']:,} s")
                        done(stage, journal)
            except BaseException:
                for _, child, _ in running.values():
                    child.terminate()  # and waits at the end of the block: training saves first
                raise


def _ready(todo: Sequence[Stage], under_way: Sequence[Stage]) -> list[Stage]:
    """The stages that read nothing of those that are not done."""
    return [stage for stage in todo if not any(map(stage.reads, (*todo, *under_way)))]


def _log(stage: Stage, out: Path, jobs: int) -> Path | None:
    """Where a stage's command writes to; None are our own streams."""
    return out / f"{stage.name}.log" if jobs > 1 else None


def write_report(plan: Plan, out: Path) -> None:
    """Writes ``results.json``, ``table.md`` and ``picture.svg`` of all that is done."""
    results = collect(plan, out)
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / TABLE, format_table(results))
    write_text(out / "picture.svg", picture(results))


def ablate(
    plan: str | Path,
    out: str | Path,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Runs the ablation of a plan and writes its table.

    For each seed: the base (pretrained once), an alignment for each row that has one, and the row's evaluations. Every
    stage is a public command, printed before it runs; one that is done is not run again. After each seed ``out`` has
    ``results.json``, ``table.md`` and ``picture.svg`` of all that is done there, by earlier calls too.

    Args:
        plan: YAML file, see ``plan.read_plan``.
        out: a new folder, or what an earlier call left.
        seeds: how many, from 0; None is the plan's number.
        only: rows of ``plan.ROWS``; None are the plan's.
        jobs: stages under way at once. With more than one, each writes to ``STAGE.log`` in ``out`` and gets its share
            of the cores (``OMP_NUM_THREADS`` where that is not set); GPUs are not shared out.
        dry_run: prints the commands and runs nothing.

    Raises UserError for a plan that cannot be used, before anything runs, and for a stage that failed.
    """
    read = read_plan(plan)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: expected at least 1")
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1")
    if only is not None:
        check_rows(only, "--only")
        read = replace(read, rows=tuple(only))
    read = replace(read, seeds=seeds or read.seeds)
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).exists():
        raise UserError(f"{out}: exists and was not made by an ablation; expected a new name")
    by_seed = [list(seed_stages(read, read.rows, seed, folder)) for seed in range(read.seeds)]
    stages = list(dict.fromkeys(stage for of_seed in by_seed for stage in of_seed))
    journal = Journal(folder)
    for seed in seeds_of(folder):  # what other rows and seeds left stands in the table too: it must be of this plan
        for stage in seed_stages(read, tuple(ROWS), seed, folder):
            journal.has(stage)
    if dry_run:
        for stage in stages:
            print(f"# {stage.name}{': done' if journal.has(stage) else ''}\n{stage.command}")
        return

    def done(stage: Stage, journal: Journal) -> None:
        if any(stage in of_seed and all(map(journal.has, of_seed)) for of_seed in by_seed):
            write_report(read, folder)

    run_stages(stages, folder, jobs, done)
    write_report(read, folder)
    print(f"\n{(folder / TABLE).read_text(encoding='utf-8')}\nIn {folder}: results.json, {TABLE}, picture.svg")
