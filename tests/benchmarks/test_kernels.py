"""benchmarks/kernels.py measures and verifies every operation; ``make gpu`` requires a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from ppa_fast.ops.ema import ema_

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["op", "shape", "dtype", "device", "floor_ms", "eager_ms", "compile_ms", "ours_ms", "peak_bytes", "error"]
OPERATIONS = ["assemble", "infonce", "enqueue", "ema_", "masked_lm_loss", "masked_lm_loss", "pack"]
EXACT = {"assemble", "enqueue", "pack"}


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The script as a module, imported with its folder on the path."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("kernels")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of a quick run, and its standard output."""
    folder = tmp_path_factory.mktemp("kernels")
    command = [sys.executable, "benchmarks/kernels.py", "--device", "cpu", "--quick"]
    command += ["--json", str(folder / "rows.json"), "--picture", str(folder / "rows.svg")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PPA_FAST_COMMIT": "cafe"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def rows(measured: tuple[Path, str]) -> list[dict[str, Any]]:
    return json.loads((measured[0] / "rows.json").read_text(encoding="utf-8"))


def test_every_operation_has_a_row_with_all_keys(rows: list[dict[str, Any]]) -> None:
    assert [row["op"] for row in rows] == OPERATIONS
    for row in rows:
        assert set(KEYS) <= row.keys()
        assert (row["device"], row["commit"], row["compile_ms"]) == ("cpu", "cafe", None)
        assert row["rounds"] >= 3
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0  # not every Linux kernel reports it
        for key in ("floor_ms", "eager_ms", "ours_ms"):
            assert row[key] > 0, (row["op"], key)


def test_results_are_correct(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["error"] <= (0.0 if row["op"] in EXACT else 1e-5), row["op"]
        assert not [note for note in row["notes"] if "wrong" in note or "failed" in note]


def test_the_table_fits_and_the_picture_shows_every_row(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    assert max(map(len, printed.splitlines())) <= 120
    picture = ElementTree.parse(folder / "rows.svg")
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in OPERATIONS] == OPERATIONS


@pytest.mark.parametrize("dim", [128, 768])
def test_infonce_on_a_gpu_is_compared_with_its_floor(kernels: ModuleType, dim: int) -> None:
    row = {"op": "infonce", "shape": f"N=256 K=65,536 D={dim}", "device": "cuda", "floor_ms": 0.02, "ours_ms": 0.03}
    row |= {"ratio": {"eager": 4.0}, "peak_bytes": 1e6, "smaller_peak_bytes": 1e6}
    assert "1.50 times the floor (target at most 2)" in kernels.targets([row])


def test_every_row_has_the_ceilings_of_its_run(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["ceilings"]["bytes_per_s"] > 0
        assert row["ceilings"]["flop_per_s"]["fp32"] > 0


def test_a_stopped_run_keeps_its_measured_rows(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "enqueue_case", stopping)
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        kernels.main(["--device", "cpu", "--quick", "--seconds", "0.1", "--ops", "ema,enqueue", "--json", str(file)])
    assert [row["op"] for row in json.loads(file.read_text(encoding="utf-8"))] == ["ema_"]


def test_a_wrong_result_is_not_timed(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(masters: list[Tensor], sources: list[Tensor], working: list[Tensor], momentum: float) -> None:
        ema_(masters, sources, working, momentum)
        masters[0].mul_(1.001)
        working[0].copy_(masters[0])

    monkeypatch.setattr(kernels, "ema_", wrong)
    file = tmp_path / "rows.json"
    assert kernels.main(["--device", "cpu", "--quick", "--ops", "ema", "--json", str(file)]) == 1
    (row,) = json.loads(file.read_text(encoding="utf-8"))
    assert row["ours_ms"] is None
    assert row["eager_ms"] > 0
    assert "ema_: ours is wrong: error 0.001" in capsys.readouterr().out


def test_an_operation_that_fails_does_not_stop_the_others(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(kernels, "layout", fails)
    monkeypatch.setattr(kernels, "enqueue", fails)
    picture = tmp_path / "rows.svg"
    what = ["--device", "cpu", "--quick", "--ops", "assemble,enqueue,ema", "--picture", str(picture)]
    assert kernels.main(what) == 1
    printed = capsys.readouterr().out
    assert "assemble: RuntimeError: out of order" in printed
    assert "enqueue: ours failed: RuntimeError: out of order" in printed
    assert "ema_ 1 M parameters: " in printed
    assert "not measured" in picture.read_text(encoding="utf-8")


def test_an_unknown_operation_is_an_error(kernels: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main(["--device", "cpu", "--ops", "ema,nonsense"])
    assert "--ops: found nonsense, expected some of assemble, infonce" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_make_gpu_without_a_gpu_is_an_error() -> None:
    done = subprocess.run(["make", "gpu", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"make gpu: there is no CUDA device (torch {torch.__version__})" in done.stderr
