"""Within a step the host synchronizes with the GPU only in DeepSpeed's optimizer step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import write_config


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_steps_do_not_synchronise(tiny, tmp_path, pooling, checkpointing):
    config = write_config(tmp_path / "ds.json", 16, 8, stage=1, bf16=True)
    job = {"model": str(tiny.model), "data": str(tiny.store), "output": str(tmp_path / "run"), "pooling": pooling}
    job |= {"deepspeed_config": str(config), "steps": 9, "queue_size": 40, "activation_checkpointing": checkpointing}
    (tmp_path / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("no_sync.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "job.json")],
        env={**os.environ, "DS_ACCELERATOR": "cuda"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
