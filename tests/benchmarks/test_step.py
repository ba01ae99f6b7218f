"""benchmarks/step.py: every way to do the step computes the same, and the whole ladder runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["name", "pairs_per_s", "tokens_per_s", "mfu", "peak_bytes", "speedup", "step_ms", "parts_ms", "error"]
ROWS = ["naive", "strongest plain", "packed", "masked rows", "fused loss", "fused EMA", "DeepSpeed"]
WAYS: dict[str, dict[str, Any]] = {
    "groups": {"groups": 4},
    "packed": {},
    "masked rows": {"masked": True},
    "fused loss": {"fused_loss": True},
    "fused EMA": {"fused_loss": True, "fused_update": True},
}


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The scripts as modules; they find their neighbours beside themselves."""
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
def test_every_way_computes_the_same(modules: Any, folder: Path, naive: list[dict[str, float]], way: str) -> None:
    # Three steps: the optimizer, the momentum update and the queue have their say in the second and the third.
    kind = modules[1].Plain if way == "groups" else modules[1].Packed
    found = figures(kind(job(modules, folder), **WAYS[way]))
    for mine, expected in zip(found, naive, strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert naive[2]["loss_moco"] > 100 * naive[0]["loss_moco"]  # keys that were queued are harder than random ones


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


def test_dropout_is_in_every_way(modules: Any, folder: Path, naive: list[dict[str, float]]) -> None:
    for kind in (modules[1].Plain, modules[1].Packed):
        step = kind(job(modules, folder))
        step.set_dropout(0.5)
        assert figures(step, 1)[0]["grad_norm"] != pytest.approx(naive[0]["grad_norm"], rel=1e-3)


def test_needed_flop_is_what_the_leanest_step_does(modules: Any, folder: Path) -> None:
    step, steps = modules
    row = step.Row("masked rows", lambda: None, steps.Packed(job(modules, folder), masked=True))
    step.figures(row, 1)
    needed = step.needed_flop(row.step.model.mlm.config, row.step.source(0)[1], 64)
    assert needed == pytest.approx(
        row.performed, rel=0.03
    )  # attention is over blocks, a tenth of whose rows is padding


def test_a_wrong_row_is_not_timed(modules: Any, folder: Path) -> None:
    step, steps = modules
    machine = step.MACHINES["cpu"](True)

    class Wrong(steps.Packed):
        def __call__(self) -> Any:
            return {**super().__call__(), "grad_norm": 1.0}

    rows = [step.Row(name, lambda kind=kind: kind(job(modules, folder))) for name, kind in
            (("naive", steps.Plain), ("wrong", Wrong), ("failing", lambda job: 1 / 0))]  # fmt: skip
    step.check(machine, rows, 1e-4)
    assert [row.step is None for row in rows] == [False, True, True]
    assert "wrong: " in rows[1].notes[0]
    assert "failed: ZeroDivisionError" in rows[2].notes[0]


def test_the_ladder_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/step.py", "--device", "cpu", "--quick", "--world-size", "2"]
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
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0  # not every kernel tells
    assert rows[0]["speedup"] == 1
    assert rows[-1]["overhead"] is not None
    for row in rows[:-1]:
        assert 0.5 * row["step_ms"] < sum(row["parts_ms"].values()) <= 1.01 * row["step_ms"]
    assert "median 24, sigma 0.5" in done.stdout
    texts = [text.text for text in ElementTree.parse(tmp_path / "rows.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ROWS] == ROWS


@pytest.mark.parametrize("pairs", ["5", "0"])
def test_pairs_that_do_not_fit_are_an_error(modules: Any, pairs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        modules[0].main(["--device", "cpu", "--quick", "--pairs", pairs])
    assert f"--pairs: found {pairs}, expected a divisor of 64 (the queue)" in capsys.readouterr().err
