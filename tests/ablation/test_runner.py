"""Stages: each once, in order, again after a kill; nothing is taken for done that is not."""

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


def test_stages_run_once_and_in_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    append = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    stages = [fake(name, tmp_path / "out", append, str(log), name) for name in "abc"]
    run_stages(stages[:2], tmp_path / "out")
    run_stages(stages, tmp_path / "out")
    assert log.read_text() == "abc"
    journal = json.loads((tmp_path / "out" / JOURNAL).read_text())
    assert {name: entry["command"] for name, entry in journal.items()} == {s.name: s.command for s in stages}
    assert f"$ {stages[2].command}" in capfd.readouterr().err


def test_a_failure_stops_and_is_tried_again(tmp_path: Path) -> None:
    fail = "import sys, pathlib; sys.exit(0 if pathlib.Path(sys.argv[1]).exists() else 3)"
    stages = [fake("a", tmp_path, fail, str(tmp_path / "ready")), write("b", tmp_path)]
    with pytest.raises(UserError, match="a: the command above ended with exit status 3"):
        run_stages(stages, tmp_path)
    assert not (tmp_path / "b").exists()
    (tmp_path / "ready").touch()
    run_stages(stages, tmp_path)
    assert (tmp_path / "b" / "done").exists()


def test_what_a_cut_off_stage_left_is_removed_unless_it_goes_on_by_itself(tmp_path: Path) -> None:
    for name, resumes in (("fresh", False), ("resumed", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        run_stages([write(name, tmp_path, resumes=resumes)], tmp_path)
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["done"]
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == ["done", "half"]


def test_a_stage_done_by_another_command_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    run_stages([write("b", tmp_path)], tmp_path)
    with pytest.raises(UserError, match=r"stages.json: b was made by another command"):
        run_stages([write("a", tmp_path), write("b", tmp_path, "other")], tmp_path)
    assert not (tmp_path / "a").exists()


def test_training_stopped_by_a_signal_is_not_done(tmp_path: Path) -> None:
    """It saves and ends with status 0, here at step 3 of 5."""
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


# A pipe that is opened to be written is open once someone reads it: each of two stages lets the other end.
MEET = "import sys; open(sys.argv[1], sys.argv[2])"


def test_stages_run_side_by_side_each_into_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_stage_begins_when_what_it_reads_is_there(tmp_path: Path) -> None:
    """``last`` reads what ``first`` makes, which waits for what stands behind both in the order."""
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


def test_a_failure_ends_the_others_which_go_on_the_next_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fail = "import sys; open(sys.argv[1], 'w'); print('no such thing'); sys.exit(3)"
    wait = "import sys, signal; open(sys.argv[1]); signal.pause()"
    stages = [fake(name, tmp_path, code, str(tmp_path / "pipe")) for name, code in (("fails", fail), ("waits", wait))]
    with pytest.raises(UserError, match=r"fails: .* status 3; what it said is in .*fails.log"):
        run_stages(stages, tmp_path, jobs=2)  # and does not wait for ever
    assert Journal(tmp_path).done == {}
    assert "no such thing" in (tmp_path / "fails.log").read_text()


# Says that it has begun, then waits for a byte that lets it end.
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
    """An ablation in a process of its own, that is in its second stage; and where to write what lets the stage end."""
    for name in ("begun", "go"):
        os.mkfifo(out / name)
    begun, go = (os.open(out / name, os.O_RDWR) for name in ("begun", "go"))
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(out)], cwd=Path(__file__).resolve().parents[2])
    assert select.select([begun], [], [], 120)[0]
    return process, go


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_ablation_goes_on_at_its_stage(number: int, tmp_path: Path) -> None:
    process, go = start(tmp_path)
    first = (tmp_path / "first" / "done").stat().st_mtime_ns
    os.kill(process.pid, number)
    assert process.wait(60) != 0
    if number == signal.SIGKILL:  # the stage lives on: nobody may work beside it
        with pytest.raises(UserError, match="in use by another ablation, or by a stage that a killed one left"):
            run_stages(slow_stages(tmp_path), tmp_path)
    os.write(go, b"xx")  # for the stage that lives on and for the one that is run again
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # waits until the stage has ended
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
    assert sum("finetune" in line for line in lines) == 6
    assert not any("moco/run" in line or "seed-1" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_row_of_another_plan_is_refused_though_it_is_not_asked_for(tmp_path: Path) -> None:
    """Its scores would stand in the same table."""
    values, out = write_files(tmp_path / "data"), tmp_path / "out"
    before = read_plan(write_plan(tmp_path / "before.yaml", values))
    [run] = [stage for stage in seed_stages(before, ("ppa",), 0, out) if stage.name == "seed-0/ppa/run"]
    run.out.mkdir(parents=True)
    Journal(out).add(run, 1.0)
    after = write_plan(tmp_path / "after.yaml", values, {"alignment.settings.steps": 3})
    with pytest.raises(UserError, match=r"seed-0/ppa/run was made by another command"):
        ablate(after, out, only=["none"], dry_run=True)
    ablate(tmp_path / "before.yaml", out, only=["none"], dry_run=True)


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.yaml", write_files(tmp_path / "data"))
    with pytest.raises(UserError, match="--seeds 0: expected at least 1"):
        ablate(plan, tmp_path / "out", seeds=0)
    with pytest.raises(UserError, match="--jobs 0: expected at least 1"):
        ablate(plan, tmp_path / "out", jobs=0)
    with pytest.raises(UserError, match="--only: found 'both'"):
        ablate(plan, tmp_path / "out", only=["both"])
    with pytest.raises(UserError, match="was not made by an ablation"):
        ablate(plan, tmp_path / "data")
    assert not (tmp_path / "out").exists()
