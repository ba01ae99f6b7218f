"""``ppa-fast ablate``: the stages of a plan, one after the other, each once; then the table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppa_fast.ablation.picture import picture
from ppa_fast.ablation.plan import Plan, check_rows, read_plan
from ppa_fast.ablation.report import collect, format_table
from ppa_fast.ablation.stages import Stage, seed_stages
from ppa_fast.errors import UserError, sigterm_as_exit
from ppa_fast.files import alone, write_text
from ppa_fast.progress import note
from ppa_fast.training.checkpoint import Checkpoints, read_state

JOURNAL = "stages.json"


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
        write_text(self.path, json.dumps(self.done, indent=1, ensure_ascii=False) + "\n")


def _run(stage: Stage, lock: int) -> None:
    """Runs a stage's command to its end; raises UserError where that is not a success."""
    note(f"$ {stage.command}")
    if stage.out.is_dir() and not stage.resumes:
        shutil.rmtree(stage.out)
    stage.out.parent.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).parent / stage.words[0]  # of this environment, activated or not
    words = [str(program) if program.exists() else stage.words[0], *stage.words[1:]]
    with subprocess.Popen(words, pass_fds=[lock]) as child:
        try:
            status = child.wait()
        except BaseException:
            child.terminate()  # and waits at the end of the block: training saves first
            raise
    if status:
        raise UserError(f"{stage.name}: the command above ended with exit status {status}")
    checkpoints = Checkpoints(stage.out)
    latest = checkpoints.named("latest") if checkpoints.folder.is_dir() else None
    if latest is not None:  # training: a signal stops it with status 0
        state = read_state(latest)
        if state["step"] < state["steps"]:
            raise UserError(f"{stage.name}: stopped at step {state['step']} of {state['steps']}; start again to go on")


def run_stages(stages: Iterable[Stage], out: Path) -> None:
    """Runs those of ``stages`` that are not done, in order, and notes each in the journal.

    A stage that was cut off is started again: one that does not go on by itself without what it left. Raises UserError
    for a stage that failed or was done by another command, and where another process is at work in ``out``.
    """
    stages = list(stages)
    with alone(out, "another ablation, or by a stage that a killed one left") as lock, sigterm_as_exit():
        journal = Journal(out)
        todo = [stage for stage in stages if not journal.has(stage)]
        for number, stage in enumerate(todo, 1):
            note(f"\n[{number} of {len(todo)}] {stage.name}")
            begin = time.monotonic()
            _run(stage, lock)
            journal.add(stage, time.monotonic() - begin)
            note(f"{stage.name}: {journal.done[stage.name]['seconds']:,} s")


def write_report(plan: Plan, out: Path) -> str:
    """Writes ``results.json``, ``table.md`` and ``picture.svg`` of all that is done; returns the table."""
    results = collect(plan, out)
    table = format_table(results)
    write_text(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "table.md", table)
    write_text(out / "picture.svg", picture(results))
    return table


def ablate(
    plan: str | Path,
    out: str | Path,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Runs the ablation of a plan and writes its table.

    For each seed: the base (pretrained once), an alignment for each row that has one, and the row's evaluations. Every
    stage is a public command, printed before it runs; one that is done is not run again. After each seed ``out`` has
    ``results.json``, ``table.md`` and ``picture.svg`` of all that is done.

    Args:
        plan: YAML file, see ``plan.read_plan``.
        out: a new folder, or what an earlier call left.
        seeds: how many, from 0; None is the plan's number.
        only: rows of ``plan.ROWS``; None are the plan's.
        dry_run: prints the commands and runs nothing.

    Raises UserError for a plan that cannot be used, before anything runs, and for a stage that failed.
    """
    read = read_plan(plan)
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: expected at least 1")
    if only is not None:
        check_rows(only, "--only")
        read = replace(read, rows=tuple(only))
    read = replace(read, seeds=seeds or read.seeds)
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ".lock").exists():
        raise UserError(f"{out}: exists and was not made by an ablation; expected a new name")
    by_seed = [list(seed_stages(read, read.rows, seed, folder)) for seed in range(read.seeds)]
    if dry_run:
        journal = Journal(folder)
        for stage in dict.fromkeys(stage for stages in by_seed for stage in stages):
            print(f"# {stage.name}{': done' if journal.has(stage) else ''}\n{stage.command}")
        return
    for stages in by_seed:
        run_stages(stages, folder)
        table = write_report(read, folder)
    print(f"\n{table}\nIn {folder}: results.json, table.md, picture.svg")
