"""benchmarks/prepare.py measures speed and memory; the memory of prepare does not grow with the corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: private memory is not known")


def measure(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "benchmarks/prepare.py", "--workers", "1", "--folder", str(folder), *arguments]
    done = subprocess.run([*command, "--json", str(folder / "rows.json")], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads((folder / "rows.json").read_text(encoding="utf-8"))


def test_every_measurement_has_a_row(tmp_path: Path) -> None:
    speed, memory = measure(tmp_path, "--pairs", "500", "--rounds", "2", "--memory-pairs", "300")
    assert (speed["part"], speed["pairs"], speed["rounds"], len(speed["ratios"])) == ("speed", 500, 2, 2)
    assert speed["ratio"] == pytest.approx(sum(speed["ratios"]) / 2)
    assert (memory["part"], memory["pairs"]) == ("memory", 300)
    assert memory["private_bytes"] > 50e6  # includes the interpreter and the libraries
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Compares with a corpus twice as large. All buffers are full at 100,000 pairs (measured: 307, 345, 364, 366,
    366 MB at 10,000, 50,000, 100,000, 200,000, 400,000)."""
    small, large = measure(tmp_path, "--pairs", "0", "--memory-pairs", "100000", "200000")
    assert large["store_bytes"] - small["store_bytes"] > 25e6
    assert large["private_bytes"] - small["private_bytes"] < 25e6
    assert large["private_bytes"] < 600e6
