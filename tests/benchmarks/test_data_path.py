"""benchmarks/data_path.py measures every part of the data path with valid stores."""

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

import numpy as np
import pytest

from ppa_fast.data.store.store import ROWS_PER_BATCH, Store

ROOT = Path(__file__).resolve().parents[2]
STEPS = [
    {"name": "naive", "pairs_per_s": 2.5},
    {"name": "fused", "pairs_per_s": 40.0},
    {"name": "plain", "pairs_per_s": 8},
]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: private memory is not known")


@pytest.fixture(scope="module")
def data_path() -> Iterator[ModuleType]:
    """The script as a module, imported with its folder on the path."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("data_path")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str, Path]:
    """The rows of a quick run against a fastest step of 40 pairs/s, its output, and the folder of its stores."""
    folder = tmp_path_factory.mktemp("data_path")
    (folder / "step.json").write_text(json.dumps(STEPS), encoding="utf-8")
    (folder / "stores").mkdir()
    command = [sys.executable, "benchmarks/data_path.py", "--quick", "--json", str(folder / "rows.json")]
    command += ["--step-json", str(folder / "step.json"), "--folder", str(folder / "stores")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PPA_FAST_COMMIT": "cafe"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "rows.json").read_text(encoding="utf-8")), done.stdout, folder / "stores"


def test_every_part_has_its_rows(measured: tuple[list[dict[str, Any]], str, Path]) -> None:
    rows, printed, stores = measured
    parts = [row["part"] for row in rows]
    assert parts == ["loader"] * 6 + ["memory", "cold", "memory"] + ["ranks"] * 2 + ["sampler"] * 2
    assert {(row["commit"], row["threads"], row["step_pairs_per_s"]) for row in rows} == {("cafe", 1, 40.0)}
    for row in rows:
        if row["part"] == "loader":
            assert row["times_step"] == pytest.approx(row["pairs_per_s"] / 40)  # the fastest row
            assert row["pairs_per_s"] > row["assembled_pairs_per_s"] > 0
        if row["part"] == "cold":
            assert 0 <= row["resident"] <= row["resident_after"] <= 1
    assert max(map(len, printed.splitlines())) <= 120
    assert not list(stores.iterdir())  # removed


def test_memory_is_reported_by_steps(measured: tuple[list[dict[str, Any]], str, Path]) -> None:
    small, large = (row for row in measured[0] if row["part"] == "memory")
    assert (small["pairs"], large["pairs"]) == (2_000, 20_000)
    assert large["store_bytes"] > 9 * small["store_bytes"]
    for row in (small, large):
        assert list(row["private_bytes"]) == ["0", "5", "20"]
        assert min(row["private_bytes"].values()) > 10 << 20  # two processes with torch
    assert measured[0][-1]["peak_bytes"] < 1 << 20
    assert measured[0][-1]["pairs"] == 10**10


def test_a_generated_store_has_the_requested_lengths(data_path: ModuleType, tmp_path: Path) -> None:
    pairs = ROWS_PER_BATCH + 500
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        data_path.generate(tmp_path / name, pairs, 6, seed)
    one, same, other = (Store.open(tmp_path / name) for name in ("one", "same", "other"))
    assert len(one) == pairs
    assert one.fingerprint == same.fingerprint != other.fingerprint
    rows = one.rows(np.arange(pairs))
    assert rows.a_tokens.min() >= 5  # no special tokens
    assert max(rows.a_tokens.max(), rows.b_tokens.max()) < one.special.vocab_size
    for lengths in one.lengths(np.arange(pairs)):
        assert np.median(lengths) == 6
        assert lengths.min() >= 1
        # The logarithm of a log-normal variable has standard deviation sigma; rounding adds 0.29 / 6 at the median.
        assert np.log(lengths).std() == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(rows.groups)) == pairs


def test_residency_is_the_cached_share_of_the_file(data_path: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert data_path.resident(tmp_path / "file") == 1  # the file was just written


@pytest.mark.parametrize("content", [None, "{", "[]", '[{"name": "fused"}]', '[{"pairs_per_s": null}]', "3"])
def test_an_invalid_step_file_is_an_error(
    data_path: ModuleType, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "step.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit):
        data_path.main(["--quick", "--step-json", str(file)])
    assert f"--step-json: {file}: expected rows of benchmarks/step.py with pairs_per_s" in capsys.readouterr().err
