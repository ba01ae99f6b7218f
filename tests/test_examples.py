"""The notebooks in ``examples/`` run from the first cell to the last on the sample corpus, and end in a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("babel", reason="Babel is not installed")
pytest.importorskip("num2words", reason="num2words is not installed")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in sorted((ROOT / "examples").glob("*.ipynb"))]
END = """
assert len(plt.get_fignums()) == 1
plt.savefig("picture.png")
assert result.after["mean"] > result.before["mean"], (result.before["mean"], result.after["mean"])
"""


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs(path):
    assert [cell["outputs"] for cell in code_cells(path)] == [[]] * len(code_cells(path)) != []
    assert {cell["execution_count"] for cell in code_cells(path)} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs_and_ends_in_a_picture(path, tmp_path):
    cells = ["".join(cell["source"]) for cell in code_cells(path)]
    assert cells[-1].endswith("plt.show()")
    (tmp_path / "notebook.py").write_text("\n".join(cells) + END, encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert (tmp_path / "picture.png").stat().st_size > 5000
