"""benchmarks/gpu.py on a CPU: stopped stages keep their rows, and the results of several calls are merged."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DONE = {"name": "a", "value": 1}


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The script as a module, imported with its folder on the path."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "benchmarks")]
    yield importlib.import_module("gpu")
    sys.path[:] = before


def shell(seconds: int, script: str, **facts: Any) -> Any:
    """A stage that runs a shell script: rows go to "$1", test outcomes to "$2", sanitizer output to "$3"."""

    def command(place: Any) -> list[str]:
        return ["sh", "-c", script, "sh", str(place.rows), str(place.outcomes), str(place.sanitizer)]

    return importlib.import_module("gpu").Stage(seconds, command, **facts)


def writes(*rows: dict[str, Any]) -> str:
    return f"printf '%s' '{json.dumps(rows)}' > \"$1\""


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def running(pid: int) -> bool:
    """Whether a process is still running."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_default_stages_fit_the_default_budget_and_every_stage_has_a_limit(gpu: ModuleType) -> None:
    assert sum(gpu.STAGES[name].seconds for name in gpu.DEFAULT) <= gpu.BUDGET <= 300
    assert min(stage.seconds for stage in gpu.STAGES.values()) > 0


def test_a_stopped_stage_keeps_its_rows_and_the_next_stage_runs(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    children = tmp_path / "children"
    hangs = f"sleep 600 & echo $! > {children}; {writes(DONE)}; wait"
    monkeypatch.setitem(gpu.STAGES, "hangs", shell(2, hangs))
    for name in ("smoke", "memcheck"):  # the machine may be busy
        monkeypatch.setitem(gpu.STAGES, name, dataclasses.replace(gpu.STAGES[name], seconds=300))
    out = tmp_path / "out"
    command = ["--device", "cpu", "--out", str(out), "--budget", "900", "--stages", "build,smoke,hangs,memcheck"]
    assert gpu.main(command) == 1
    stages = results(out)["stages"]
    states = {name: stage["state"] for name, stage in stages.items()}
    assert states == {"build": "not run", "smoke": "ok", "memcheck": "ok", "hangs": "stopped"}
    assert stages["hangs"]["rows"] == [DONE]
    assert not running(int(children.read_text()))
    assert {row["op"] for row in stages["smoke"]["rows"]} == {
        "assemble",
        "infonce",
        "enqueue",
        "masked_lm_loss",
        "ema_",
    }
    assert all(row["right"] for row in stages["smoke"]["rows"])
    assert 8 <= stages["memcheck"]["tests"]["collected"] <= 16
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= len(stages) + gpu.LINES + 2
    assert any(line.startswith("hangs: stopped (after 2 s)") for line in printed)
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json"]
    assert "right  infonce" in (out / "log.txt").read_text(encoding="utf-8")


def test_stages_beyond_the_budget_are_not_run(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.STAGES, "long", shell(600, f"{writes(DONE)}; exec sleep 600"))
    monkeypatch.setitem(gpu.STAGES, "late", shell(600, "true"))
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--budget", "2", "--stages", "long,late"]) == 1
    stages = results(tmp_path)["stages"]
    assert (stages["long"]["state"], stages["long"]["rows"]) == ("stopped", [DONE])
    assert (stages["late"]["state"], stages["late"]["reason"]) == ("not run", "the budget is spent")


def test_results_of_calls_are_merged_by_stage_and_row(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(**scripts: str) -> dict[str, Any]:
        for name, script in scripts.items():
            monkeypatch.setitem(gpu.STAGES, name, shell(60, script))
        gpu.main(["--device", "cpu", "--out", str(tmp_path), "--stages", ",".join(scripts)])
        return {name: stage["rows"] for name, stage in results(tmp_path)["stages"].items()}

    call(one=writes(DONE, {"name": "b", "value": 1}), two=writes({"name": "a", "value": 2}))
    assert call(one=writes({"name": "b", "value": 3}, {"name": "c", "value": 3})) == {
        "one": [DONE, {"name": "b", "value": 3}, {"name": "c", "value": 3}],
        "two": [{"name": "a", "value": 2}],
    }


def test_results_of_another_device_are_not_merged(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.write(tmp_path / "results.json", {"device": "another", "stages": {"two": {"state": "ok", "rows": [DONE]}}})
    monkeypatch.setitem(gpu.STAGES, "one", shell(60, "true"))
    gpu.main(["--device", "cpu", "--out", str(tmp_path), "--stages", "one"])
    assert list(results(tmp_path)["stages"]) == ["one"]


def test_a_stage_that_did_not_run_keeps_its_earlier_result(gpu: ModuleType) -> None:
    old = {"stages": {"step": {"state": "ok", "rows": [DONE]}}}
    new = {"stages": {"step": {"state": "not run", "rows": []}, "smoke": {"state": "not run", "rows": []}}}
    stages = gpu.merged(old, new)["stages"]
    assert stages == {"smoke": {"state": "not run", "rows": []}, "step": {"state": "ok", "rows": [DONE]}}


def test_results_of_other_machines_are_published(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "published")
    for name in ("naive", "plain"):
        (tmp_path / name).mkdir()
        stages = {name: {"state": "ok", "rows": [{"name": name}]}}
        gpu.write(tmp_path / name / "results.json", {"device": "NVIDIA H200", "stages": stages})
    assert gpu.main(["--merge", str(tmp_path / "naive"), str(tmp_path / "plain")]) == 0
    assert list(gpu.read(tmp_path / "published" / "nvidia-h200.json")["stages"]) == ["plain", "naive"]
    assert "nvidia-h200.json" in capsys.readouterr().out


def test_outcomes_are_counted_up_to_the_kill(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_them.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_without(): pytest.skip('no')\n"
        "def test_deadly(): os.kill(os.getpid(), 9)\n"
        "def test_late(): pass\n",
        encoding="utf-8",
    )

    def command(place: Any) -> list[str]:
        options = ["-p", "no:cacheprovider", "-p", "benchmarks.outcomes", "--outcomes", str(place.outcomes)]
        return [sys.executable, "-m", "pytest", "-q", *options, "--rootdir", str(tmp_path), str(tmp_path)]

    (tmp_path / "place").mkdir()
    found = gpu.run(gpu.Stage(300, command), gpu.Place("cpu", tmp_path / "place"), 300, lambda result: None)
    assert found["state"] == "failed"
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 1, "collected": 5}
    assert [test.rpartition("::")[2] for test in found["failures"]] == ["test_bad"]


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ('echo \'{"test": "t", "outcome": "skipped"}\' > "$2"', "failed"),  # no test ran
        ('echo \'{"test": "t", "outcome": "passed"}\' > "$2"; echo "ERROR SUMMARY: 0 errors" > "$3"', "ok"),
        ('echo \'{"test": "t", "outcome": "passed"}\' > "$2"; echo "ERROR SUMMARY: 2 errors" > "$3"', "failed"),
        ('echo \'{"test": "t", "outcome": "passed"}\' > "$2"; echo "no such device" > "$3"', "failed"),
        ("echo no room; exit 3", "failed"),
    ],
)
def test_failures_are_recognised(gpu: ModuleType, tmp_path: Path, script: str, state: str) -> None:
    found = gpu.run(shell(60, script), gpu.Place("cpu", tmp_path), 60, lambda result: None)
    assert found["state"] == state
    assert "no room" not in script or found["reason"] == "exit status 3: no room"


def test_packages_on_the_path_are_kept(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/packages")
    gpu.run(shell(60, 'echo "$PYTHONPATH"'), gpu.Place("cpu", tmp_path), 60, lambda result: None)
    assert gpu.Place("cpu", tmp_path).log.read_text().strip() == f"{ROOT}:/packages"


def test_a_long_summary_is_shortened(gpu: ModuleType) -> None:
    rows = [{"op": "ema_", "shape": str(i), "dtype": "fp32", "right": False} for i in range(9)]
    stages = {str(i): {"state": "ok", "reason": "", "seconds": 1.0, "rows": []} for i in range(200)}
    stages["smoke"] = {"state": "failed", "reason": "", "seconds": 1.0, "rows": rows}
    lines = gpu.summary({"device": "d", "torch": "t", "commit": "c", "stages": stages})
    assert len(lines) == gpu.LINES
    assert lines[-1].endswith("lines more: log.txt")


def test_an_unknown_stage_is_an_error(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--stages", "smoke,nonsense"])
    assert "--stages: found nonsense, expected some of build, smoke" in capsys.readouterr().err
