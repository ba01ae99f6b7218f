"""Runs the pipeline in the environment of the tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.pipeline import run_pipeline

TOOL = Path(sys.executable).with_name("ppa-fast")


@pytest.mark.skipif(not TOOL.exists(), reason="ppa-fast is not installed in this Python")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: DeepSpeed compiles its CPU collectives")
def test_the_pipeline_runs_and_resumes(tmp_path):
    run_pipeline(TOOL, tmp_path)
