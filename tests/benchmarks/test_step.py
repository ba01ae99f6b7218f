"""benchmarks/step.py: every implementation of the step gives equal results, and all rows run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["name", "pairs_per_s", "tokens_per_s", "mfu", "peak_bytes", "speedup", "step_ms", "parts_ms", "error"]
ROWS = ["naive", "strongest plain", "packed", "masked rows", "fused loss", "fused EMA", "DeepSpeed, micro-batch 4"]
WAYS: dict[str, dict[str, Any]] = {
    "groups": {"groups": 4},
    "packed": {},
    "masked rows": {"masked": True},
    "fused loss": {"fused_loss": True},
    "fused EMA": {"fused_loss": True, "fused_update": True},
}


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The scripts as modules, imported with their folder on the path."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("step"), importlib.import_module("steps")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def folder(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    step, _ = modules
    made = tmp_path_factory.mktemp("step")
    step.make(made, step.SIZES["quick"])
    return made


def job(modules: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return modules[1].Job(folder, 16, 64, torch.device("cpu"), dtype)


def figures(step: Any, count: int = 3) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in step().items()} for _ in range(count)]


@pytest.fixture(scope="module")
def naive(modules: Any, folder: Path) -> list[dict[str, float]]:
    return figures(modules[1].Plain(job(modules, folder), "eager", fused=False))


@pytest.mark.parametrize("way", WAYS)
def test_every_implementation_gives_equal_results(
    modules: Any, folder: Path, naive: list[dict[str, float]], way: str
) -> None:
    # Three steps, because the optimizer, the momentum update and the queue affect the second and third.
    kind = modules[1].Plain if way == "groups" else modules[1].Packed
    found = figures(kind(job(modules, folder), **WAYS[way]))
    for mine, expected in zip(found, naive, strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert naive[2]["loss_moco"] > 100 * naive[0]["loss_moco"]  # queued keys are harder negatives than random ones


def test_bf16_weights_have_fp32_masters(modules: Any, folder: Path, naive: list[dict[str, float]]) -> None:
    step = modules[1].Packed(job(modules, folder, torch.bfloat16), fused_loss=True, fused_update=True)
    before = [tensor.detach().clone() for tensor in step.masters.tensors]
    found = figures(step)
    for mine, expected in zip(found, naive, strict=True):
        assert mine["loss_tlm"] == pytest.approx(expected["loss_tlm"], rel=1e-3)
    for master, working, was in zip(step.masters.tensors, step.masters.working, before, strict=True):
        assert (master.dtype, working.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(working, master.bfloat16())
        assert not torch.equal(master, was)


def test_every_implementation_applies_dropout(modules: Any, folder: Path, naive: list[dict[str, float]]) -> None:
    for kind in (modules[1].Plain, modules[1].Packed):
        step = kind(job(modules, folder))
        step.set_dropout(0.5)
        assert figures(step, 1)[0]["grad_norm"] != pytest.approx(naive[0]["grad_norm"], rel=1e-3)


def test_needed_flop_equals_that_of_the_smallest_step(modules: Any, folder: Path) -> None:
    step, steps = modules
    row = step.Row("masked rows", lambda: None, steps.Packed(job(modules, folder), masked=True))
    step.figures(row, 1)
    needed = step.needed_flop(row.step.model.mlm.config, row.step.source(0)[1], 64)
    assert needed == pytest.approx(row.performed, rel=0.03)  # a tenth of the attention blocks is padding


def test_a_wrong_row_is_not_timed(modules: Any, folder: Path) -> None:
    step, steps = modules
    machine = step.MACHINES["cpu"](True)

    class Wrong(steps.Packed):
        def __call__(self) -> Any:
            return {**super().__call__(), "grad_norm": 1.0}

    rows = [step.Row(name, lambda kind=kind: kind(job(modules, folder))) for name, kind in
            (("naive", steps.Plain), ("wrong", Wrong), ("failing", lambda job: 1 / 0))]  # fmt: skip
    step.check(machine, rows, step.true_figures(job(modules, folder)), 1e-4, longest=3)
    assert [row.step is None for row in rows] == [False, True, True]
    assert "wrong: " in rows[1].notes[0]
    assert "failed: ZeroDivisionError" in rows[2].notes[0]


def test_all_rows_run(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/step.py", "--device", "cpu", "--quick", "--world-size", "2"]
    command += ["--micro-batch", "4", "--profile", "1", "--folder", str(tmp_path / "kept")]
    command += ["--json", str(tmp_path / "rows.json"), "--picture", str(tmp_path / "rows.svg")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PPA_FAST_COMMIT": "cafe"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == ROWS
    for row in rows:
        assert set(KEYS) <= row.keys()
        assert (row["commit"], row["pairs"], row["world_size"]) == ("cafe", 16, 2)
        assert min(row["pairs_per_s"], row["tokens_per_s"], row["mfu"], row["speedup"]) > 0
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0  # not every Linux kernel reports it
    assert rows[0]["speedup"] == 1
    last = rows[-1]
    assert last["overhead"] is not None
    assert last["micro_batch"] == 4
    assert last["error"] < 1e-4
    assert last["profile"]["launches"] > 100
    assert 0 < last["profile"]["busy_ms"] <= last["profile"]["span_ms"]
    assert f"{ROWS[-1]}: {last['profile']['launches']:,.0f} launches" in done.stdout
    assert sorted(path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()) == [
        "model", "store", "tokenizer",
    ]  # fmt: skip
    for row in rows[:-1]:
        assert 0.5 * row["step_ms"] < sum(row["parts_ms"].values()) <= 1.01 * row["step_ms"]
    assert "median 24, sigma 0.5" in done.stdout
    texts = [text.text for text in ElementTree.parse(tmp_path / "rows.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ROWS] == ROWS


def test_a_stopped_run_keeps_its_measured_rounds(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, _ = modules
    time_steps, timed = step.time_steps, []

    def stopping(machine: Any, row: Any, count: int) -> None:
        if len(timed) == 3:
            raise KeyboardInterrupt
        timed.append(row.name)
        time_steps(machine, row, count)

    monkeypatch.setattr(step, "time_steps", stopping)
    file = tmp_path / "rows.json"
    command = ["--device", "cpu", "--quick", "--rounds", "2", "--rows", "masked rows,fused loss", "--json", str(file)]
    with pytest.raises(KeyboardInterrupt):
        step.main(command)
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["name"], row["rounds"]) for row in rows] == [("masked rows", 1), ("fused loss", 1)]
    assert min(row["pairs_per_s"] for row in rows) > 0
    assert timed == ["masked rows", "fused loss", "fused loss"]


def test_rows_are_selected_by_name_for_every_micro_batch(modules: Any, folder: Path) -> None:
    options = SimpleNamespace(rows=["DeepSpeed", "naive"], micro_batch=[16, 4], world_size=1, compile=True)
    rows = modules[0].selected_rows(job(modules, folder), options, {})
    assert [row.name for row in rows] == ["naive", "DeepSpeed", "DeepSpeed, micro-batch 4"]


def test_on_cuda_rows_are_measured_one_at_a_time(modules: Any) -> None:
    step, _ = modules
    rows = [step.Row(name, lambda: None) for name in "ab"]
    assert step.alternating_groups(SimpleNamespace(device=torch.device("cuda")), rows) == [rows[:1], rows[1:]]
    assert step.alternating_groups(SimpleNamespace(device=torch.device("cpu")), rows) == [rows]


def test_a_finished_row_frees_its_memory(modules: Any, folder: Path) -> None:
    step, steps = modules
    ways = (steps.Plain(job(modules, folder), "eager"), steps.Packed(job(modules, folder), fused_loss=True))
    rows = [step.Row("row", lambda: None, way) for way in ways]
    models = [weakref.ref(way.model) for way in ways]
    del ways
    for row in rows:
        row.step()
        row.end()
    step.MACHINES["cpu"].release()
    assert [model() for model in models] == [None, None]


def test_an_extra_step_does_not_change_the_sequence_of_steps(modules: Any, folder: Path) -> None:
    found = modules[1].Packed(job(modules, folder))
    first = found.at(3)["loss_tlm"]
    assert found.number == 0
    assert first == pytest.approx(modules[1].Packed(job(modules, folder)).at(3)["loss_tlm"].item())
    assert first != pytest.approx(modules[1].Packed(job(modules, folder))()["loss_tlm"].item())


def test_the_plain_step_uses_bf16_if_fp32_and_full_batches_do_not_fit(
    modules: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = modules
    tried: list[dict[str, Any]] = []

    class Small(steps.Step):
        def __init__(self, job: Any, **settings: Any) -> None:
            super().__init__(job)
            tried.append(settings)
            if not settings["autocast"] or settings["groups"] == 1:
                raise RuntimeError("out of memory")

        def __call__(self) -> Any:
            return {}

        def set_dropout(self, share: float) -> None:
            pass

    monkeypatch.setattr(step, "Plain", Small)
    best, notes = step.strongest(step.MACHINES["cpu"](True), job(modules, folder), 1, 0, compiles=False)
    assert tried[0] == {"autocast": True, "groups": 8}
    assert best["autocast"] is True
    assert best["groups"] > 1
    assert "autocast=False failed: RuntimeError: out of memory" in notes
    assert "groups=1 failed: RuntimeError: out of memory" in notes


def test_the_profile_counts_kernels_that_cover_the_span() -> None:
    profiling = importlib.import_module("profiling")
    events = [("gemm", 0.0, 400.0), ("copy", 300.0, 500.0), ("Memcpy HtoD", 900.0, 1000.0), ("gemm", 600.0, 700.0)]
    found = profiling.summed(events, steps=2)
    assert (found["launches"], found["copies"]) == (1.5, 0.5)
    assert (found["span_ms"], found["busy_ms"]) == (0.5, 0.35)
    assert found["idle_share"] == pytest.approx(0.3)
    assert found["kernels"][0] == {"name": "gemm", "count": 1.0, "ms": 0.25, "share": 500 / 800}
    assert profiling.summed([], steps=1)["kernels"] == []


def test_missing_ratios_are_computed_between_runs(modules: Any) -> None:
    rows = [
        {"name": "naive", "step_ms": 80.0, "speedup": 1.0, "over_plain": None},
        {"name": "strongest plain", "step_ms": 20.0, "speedup": None, "over_plain": 1.0},
        {"name": "DeepSpeed", "step_ms": 10.0, "speedup": 9.0, "over_plain": None},
        {"name": "compiled", "step_ms": None, "speedup": None, "over_plain": None},
    ]
    found = importlib.import_module("step_report").compared(rows)
    ratios = [(row["speedup"], row["over_plain"]) for row in found]
    assert ratios == [(1.0, 0.25), (4.0, 1.0), (9.0, 2.0), (None, None)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rows", "naive,nonsense"], "--rows: found nonsense, expected some of naive, strongest plain"),
        (["--micro-batch", "16,3"], "--micro-batch: found 16,3, expected divisors of 16, the pairs of a rank"),
        (["--micro-batch", "0"], "--micro-batch: found 0, expected divisors of 16"),
    ],
)
def test_unknown_rows_and_micro_batches_are_errors(
    modules: Any, option: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        modules[0].main(["--device", "cpu", "--quick", *option])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("pairs", ["5", "0"])
def test_pairs_that_do_not_fit_are_an_error(modules: Any, pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        modules[0].main(["--device", "cpu", "--quick", "--pairs", pairs])
    assert f"--pairs: found {pairs}, expected a divisor of 64 (the queue)" in capsys.readouterr().err
