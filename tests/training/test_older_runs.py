r"""Stores, runs and checkpoints of version 0.1.0 still resume and export.

Version 0.1.0 wrote ``older/`` on a CPU: a model, a store, a run of 4 steps with the checkpoint of step 2, and its
results after step 4 (``expected.*``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ppa_fast.training import step
from ppa_fast.training.export import export
from ppa_fast.training.json_lines import read_lines
from tests.conftest import write_config
from tests.training.harness import largest_difference, run_here, tensors

OLDER = Path(__file__).with_name("older")


@pytest.fixture
def older(tmp_path):
    shutil.copytree(OLDER, tmp_path / "older")
    return tmp_path / "older"


def test_a_run_resumes_to_the_same_weights(older):
    config = write_config(older / "ds.json", 8, 4, stage=1)
    paths = {"model": older / "model", "data": older / "store", "output": older / "run", "deepspeed_config": config}
    job = {"queue_size": 16, "pooling": "mean", "steps": 4, "log_every": 1, "save_every": 2, "learning_rate": 1e-3}
    run_here({**{name: str(path) for name, path in paths.items()}, **job})
    assert largest_difference(tensors(older / "run", 4, "query"), load_file(older / "expected.safetensors")) < 1e-6
    expected = [json.loads(line) for line in (older / "expected.jsonl").read_text(encoding="utf-8").splitlines()]
    for found, wanted in zip(read_lines(older / "run" / "metrics.jsonl")[2:], expected, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_a_run_without_tlm_resumes_with_its_frozen_head(tiny, tmp_path, monkeypatch):
    """Version 0.1.0 had an MLM head, frozen, in runs without TLM too."""
    config = write_config(tmp_path / "ds.json", 16, stage=1)
    paths = {"model": tiny.model, "data": tiny.store, "deepspeed_config": config}
    job = {**{name: str(path) for name, path in paths.items()}, "tlm": False, "queue_size": 16, "pooling": "mean"}
    job |= {"schedule": "constant", "save_every": 1}
    with monkeypatch.context() as older:
        older.setattr(step, "_began_with_head", lambda plan: True)
        run_here({**job, "output": str(tmp_path / "straight"), "steps": 2})
        run_here({**job, "output": str(tmp_path / "run"), "steps": 1})
    before = tensors(tmp_path / "run", 1, "query")
    assert "mlm.cls.predictions.transform.dense.weight" in before
    run_here({**job, "output": str(tmp_path / "run"), "steps": 2})
    found, expected = (tensors(tmp_path / run, 2, "query") for run in ("run", "straight"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(torch.equal(found[name], before[name]) for name in found if name.startswith("mlm.cls."))
    export(tmp_path / "run", tmp_path / "exported")


def test_a_run_exports(older, tmp_path):
    export(str(older / "run"), str(tmp_path / "exported"))
    query = load_file(older / "run" / "checkpoints" / "step-00000002" / "query.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    trained = {name.removeprefix("mlm."): p for name, p in query.items() if name.startswith("mlm.")}
    assert trained.keys() <= exported.keys()
    assert all(exported[name].equal(trained[name]) for name in trained)
