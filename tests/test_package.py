"""The source distribution installs in an empty environment and works there."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

import ppa_fast
from tests.pipeline import DEV, run, run_until_training

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.mark.slow
def test_the_sdist_contains_everything_for_a_build_and_a_run(sdist):
    assert sdist.name == f"ppa_fast-{ppa_fast.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "ppa_fast/train.py", "ds_configs/gpu1.json"}
    needed |= {"ppa_fast/reporting/page.html", "ppa_fast/sample/sentences.tsv"}
    needed |= {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    needed |= {f"ppa_fast/ds_configs/{name}.json" for name in ("cpu", "gpu1", "gpu8")}
    assert needed <= names


@pytest.mark.slow
def test_the_sdist_installs_in_an_empty_environment_and_works(sdist, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, tool = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "ppa-fast"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", "numpy", "setuptools", "wheel")
    # pip hides this torch from the build, in an isolated environment; the operations are built with it all the same.
    # Not those of CUDA, which take minutes to compile and which the build of this checkout has compiled.
    run(*pip, f"ppa-fast[sample] @ {sdist.as_uri()}", env={**os.environ, "PPA_FAST_CUDA": "0"})
    # In another folder, without this checkout on the path, so that only the installed package is used.
    options = {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}
    assert run(tool, "--version", **options).strip() == f"ppa-fast {ppa_fast.__version__}"
    where = run(python, "-c", "import ppa_fast; print(ppa_fast.__file__, ppa_fast.train.__module__)", **options)
    assert str(tmp_path) in where
    assert where.split()[1] == "ppa_fast.training.trainer"
    if shutil.which("g++"):
        used = "from ppa_fast.data.loading import packing; from ppa_fast.ops import library"
        show = f"{used}; print(library.backend('cpu'), packing.WHY_NOT_NATIVE)"
        assert run(python, "-c", show, **options).split() == ["native"]
    # Training is left out: DeepSpeed would compile its collectives anew for this environment.
    run_until_training(tool, tmp_path, env=options["env"])
    assert "en-de" in run(tool, "evaluate", "retrieval", "--model", "model", *DEV, **options)
