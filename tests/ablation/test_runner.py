"""Stages: each runs once, in order, and again after a kill; unfinished stages never count as done."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ppa_fast.ablation.plan import read_plan
from ppa_fast.ablation.runner import JOURNAL, Journal, ablate, run_stages
from ppa_fast.ablation.stages import Stage, seed_stages
from ppa_fast.errors import UserError
from ppa_fast.training.checkpoint import KEYS
from tests.ablation.plans import write_files, write_plan

WRITE = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); (p / sys.argv[2]).touch()"


def fake(name: str, out: Path, code: str, *words: str, resumes: bool = False) -> Stage:
    return Stage(name, ("python", "-c", code, *words), out / name, resumes)


def write(name: str, out: Path, file: str = "done", resumes: bool = False) -> Stage:
    return fake(name, out, WRITE, str(out / name), file, resumes=resumes)


def test_stages_run_once_and_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    append = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    stages = [fake(name, tmp_path / "out", append, str(log), name) for name in "abc"]
    run_stages(stages[:2], tmp_path / "out")
    run_stages(stages, tmp_path / "out")
    assert log.read_text() == "abc"
    journal = json.loads((tmp_path / "out" / JOURNAL).read_text())
    assert {name: entry["command"] for name, entry in journal.items()} == {s.name: s.command for s in stages}
    assert f"$ {stages[2].command}" in caplog.text


def test_a_failed_stage_stops_the_run_and_is_retried(tmp_path: Path) -> None:
    fail = "import sys, pathlib; sys.exit(0 if pathlib.Path(sys.argv[1]).exists() else 3)"
    stages = [fake("a", tmp_path, fail, str(tmp_path / "ready")), write("b", tmp_path)]
    with pytest.raises(UserError, match="a: the command above failed with exit status 3"):
        run_stages(stages, tmp_path)
    assert not (tmp_path / "b").exists()
    (tmp_path / "ready").touch()
    run_stages(stages, tmp_path)
    assert (tmp_path / "b" / "done").exists()


def test_output_of_an_interrupted_stage_is_removed_unless_it_resumes(tmp_path: Path) -> None:
    for name, resumes in (("fresh", False), ("resumed", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        run_stages([write(name, tmp_path, resumes=resumes)], tmp_path)
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["done"]
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == ["done", "half"]


def test_a_stage_that_another_command_finished_is_an_error_before_any_stage_runs(tmp_path: Path) -> None:
    run_stages([write("b", tmp_path)], tmp_path)
    with pytest.raises(UserError, match=r"stages.json: b: found another command than the plan's"):
        run_stages([write("a", tmp_path), write("b", tmp_path, "other")], tmp_path)
    assert not (tmp_path / "a").exists()


def test_training_that_a_signal_stopped_does_not_count_as_done(tmp_path: Path) -> None:
    """Training saves and exits with status 0, here at step 3 of 5."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    state = dict.fromkeys(KEYS, 3)
    (checkpoint / "state.json").write_text(json.dumps(state | {"steps": 5}))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    stage = write("run", tmp_path, resumes=True)
    with pytest.raises(UserError, match="run: stopped at step 3 of 5"):
        run_stages([stage], tmp_path)
    assert not Journal(tmp_path).has(stage)
    (checkpoint / "state.json").write_text(json.dumps(state))
    run_stages([stage], tmp_path)
    assert Journal(tmp_path).has(stage)


# Opening a pipe for writing blocks until another process reads it, so each of the two stages waits for the other.
MEET = "import sys; open(sys.argv[1], sys.argv[2])"


def test_parallel_stages_write_separate_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("ppa_fast.ablation.runner.available_cores", lambda: 6)
    os.mkfifo(tmp_path / "pipe")
    say = "import os; print('threads:', os.environ['OMP_NUM_THREADS'])"
    stages = [
        fake(name, tmp_path, MEET, str(tmp_path / "pipe"), mode) for name, mode in (("reads", "r"), ("writes", "w"))
    ]
    stages.append(fake("seed-0/says", tmp_path, say))
    ends: list[str] = []
    run_stages(stages, tmp_path, jobs=2, done=lambda stage, journal: ends.append(stage.name))
    assert sorted(ends) == sorted(Journal(tmp_path).done) == ["reads", "seed-0/says", "writes"]
    assert (tmp_path / "reads.log").read_text() == f"$ {stages[0].command}\n"
    assert (tmp_path / "seed-0" / "says.log").read_text().splitlines() == [f"$ {stages[2].command}", "threads: 3"]


def test_a_stage_starts_when_its_inputs_exist(tmp_path: Path) -> None:
    """``last`` reads the output of ``first``, which waits for a stage that comes after both."""
    os.mkfifo(tmp_path / "pipe")
    check = "import sys, os; sys.exit(not os.path.exists(sys.argv[1]))"
    meet = f"{MEET}; open(sys.argv[3], 'w')"
    stages = [
        fake("first", tmp_path, meet, str(tmp_path / "pipe"), "r", str(tmp_path / "first")),
        fake("last", tmp_path, check, str(tmp_path / "first")),
        fake("beside", tmp_path, MEET, str(tmp_path / "pipe"), "w"),
    ]
    run_stages(stages, tmp_path, jobs=2)
    assert Journal(tmp_path).done.keys() == {"first", "last", "beside"}


def test_a_failure_stops_parallel_stages_which_resume_in_the_next_call(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fail = "import sys; open(sys.argv[1], 'w'); print('no such thing'); sys.exit(3)"
    wait = "import sys, signal; open(sys.argv[1]); signal.pause()"
    stages = [fake(name, tmp_path, code, str(tmp_path / "pipe")) for name, code in (("fails", fail), ("waits", wait))]
    with pytest.raises(UserError, match=r"fails: .* status 3; see .*fails.log"):
        run_stages(stages, tmp_path, jobs=2)  # and does not wait forever
    assert Journal(tmp_path).done == {}
    assert "no such thing" in (tmp_path / "fails.log").read_text()


# Reports that it has started, then waits for a byte before it exits.
SLOW = """
import os, sys
os.write(os.open(sys.argv[1] + "/begun", os.O_WRONLY), b"x")
os.read(os.open(sys.argv[1] + "/go", os.O_RDONLY), 1)
"""
CHILD = """
import sys
from pathlib import Path
from tests.ablation.test_runner import slow_stages
from ppa_fast.ablation.runner import run_stages
run_stages(slow_stages(Path(sys.argv[1])), Path(sys.argv[1]))
"""


def slow_stages(out: Path) -> list[Stage]:
    return [write("first", out), fake("slow", out, SLOW, str(out)), write("last", out)]


def start(out: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Starts an ablation in a process of its own that reaches its second stage; also returns the pipe that lets the
    stage exit."""
    for name in ("begun", "go"):
        os.mkfifo(out / name)
    begun, go = (os.open(out / name, os.O_RDWR) for name in ("begun", "go"))
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(out)], cwd=Path(__file__).resolve().parents[2])
    assert select.select([begun], [], [], 120)[0]
    return process, go


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_ablation_resumes_at_its_stage(number: int, tmp_path: Path) -> None:
    process, go = start(tmp_path)
    first = (tmp_path / "first" / "done").stat().st_mtime_ns
    os.kill(process.pid, number)
    assert process.wait(60) != 0
    if number == signal.SIGKILL:  # the stage is still running, so a second ablation must fail
        with pytest.raises(UserError, match="in use by another ablation, or by a stage of one that was killed"):
            run_stages(slow_stages(tmp_path), tmp_path)
    os.write(go, b"xx")  # one byte for the running stage, one for the repeated stage
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # waits until the stage has exited
    os.close(lock)
    run_stages(slow_stages(tmp_path), tmp_path)
    assert (tmp_path / "first" / "done").stat().st_mtime_ns == first
    assert (tmp_path / "last" / "done").exists()


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(tmp_path / "plan.yaml", write_files(tmp_path / "data"))
    ablate(plan, tmp_path / "out", seeds=1, only=["none", "tlm"], dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# tokenizer"
    assert lines[1].startswith("ppa-fast tokenizer --out ")
    assert sum("finetune" in line for line in lines) == 8
    assert not any("moco/run" in line or "seed-1" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_results_of_a_different_plan_are_an_error_even_for_rows_that_are_not_selected(tmp_path: Path) -> None:
    """The scores would appear in the same table."""
    values, out = write_files(tmp_path / "data"), tmp_path / "out"
    before = read_plan(write_plan(tmp_path / "before.yaml", values))
    [run] = [stage for stage in seed_stages(before, ("ppa",), 0, out) if stage.name == "seed-0/ppa/run"]
    run.out.mkdir(parents=True)
    Journal(out).add(run, 1.0)
    after = write_plan(tmp_path / "after.yaml", values, {"alignment.settings.steps": 3})
    with pytest.raises(UserError, match=r"seed-0/ppa/run: found another command than the plan's"):
        ablate(after, out, only=["none"], dry_run=True)
    ablate(tmp_path / "before.yaml", out, only=["none"], dry_run=True)


def test_invalid_arguments_are_an_error_before_any_file_is_written(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.yaml", write_files(tmp_path / "data"))
    with pytest.raises(UserError, match="seeds: found 0, expected at least 1"):
        ablate(plan, tmp_path / "out", seeds=0)
    with pytest.raises(UserError, match="jobs: found 0, expected at least 1"):
        ablate(plan, tmp_path / "out", jobs=0)
    with pytest.raises(UserError, match="--only: found 'both'"):
        ablate(plan, tmp_path / "out", only=["both"])
    with pytest.raises(UserError, match="found a folder that is not an ablation's"):
        ablate(plan, tmp_path / "data")
    assert not (tmp_path / "out").exists()
