"""The source distribution installs in an empty environment and does its job there."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import ppa_fast

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_and_a_run_need(sdist):
    assert sdist.name == f"ppa_fast-{ppa_fast.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "ppa_fast/train.py", "ds_configs/gpu1.json"}
    needed |= {"ppa_fast/reporting/page.html"}
    needed |= {f"ppa_fast/ds_configs/{name}.json" for name in ("cpu", "gpu1", "gpu8")}
    assert needed <= names


@pytest.mark.slow
def test_it_installs_in_an_empty_environment_and_works(sdist, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, tool = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "ppa-fast"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", "numpy", "setuptools", "wheel")
    run(*pip, "--no-build-isolation", sdist)
    # Elsewhere, and without this checkout on the path: only what was installed is there.
    options = {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}}
    assert run(tool, "--version", **options).strip() == f"ppa-fast {ppa_fast.__version__}"
    where = run(python, "-c", "import ppa_fast; print(ppa_fast.__file__, ppa_fast.train.__module__)", **options)
    assert str(tmp_path) in where
    assert where.split()[1] == "ppa_fast.training.loop"
    run(tool, "sample", "--out", "corpus", "--pairs", "200", "--dev-pairs", "20", "--languages", "de", **options)
    texts = ("corpus/train.en", "corpus/train.de")
    run(tool, "tokenizer", "--files", *texts, "--vocab-size", "500", "--out", "tokenizer", **options)
    small = ("--layers", "1", "--hidden", "32", "--heads", "2")
    run(tool, "init", "--tokenizer", "tokenizer", *small, "--out", "model", **options)
    run(tool, "prepare", "--pairs", f"en-de:{','.join(texts)}", "--tokenizer", "tokenizer", "--out", "store", **options)
    config = tmp_path / "ds.json"
    config.write_text('{"train_batch_size": 8}')
    train = (tool, "train", "--model", "model", "--data", "store", "--output", "run")
    ready = Path(run(*train, "--dry-run", **options).partition("--deepspeed_config=")[2].split()[0])
    assert (tmp_path / ready).is_file()
    run(*train, "--deepspeed_config", config, "--steps", "2", "--queue-size", "8", **options)
    run(tool, "export", "run", "--out", "export", **options)
    dev = ("--pairs", "en-de:corpus/dev.en,corpus/dev.de")
    assert "en-de" in run(tool, "evaluate", "retrieval", "--model", "export", *dev, **options)
