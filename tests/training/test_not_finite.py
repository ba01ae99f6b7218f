"""Consecutive non-finite steps stop the run, and their pairs are listed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import ppa_fast.training.step
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import Store
from ppa_fast.errors import UserError
from tests.conftest import write_config
from tests.training.harness import metrics, run_here


@pytest.fixture
def job(tiny, tmp_path):
    config = write_config(tmp_path / "ds.json", 16, 8)
    base = {"model": str(tiny.model), "data": str(tiny.store), "output": str(tmp_path / "run"), "seed": 3}
    return base | {"deepspeed_config": str(config), "steps": 9, "queue_size": 40, "pooling": "mean", "save_every": 2}


def inject(monkeypatch, broken: set[int]) -> None:
    """Makes the second micro-batch of these steps (counted from 1) non-finite."""
    original, calls = ppa_fast.training.step.objective, [0]

    def objective(*arguments):
        losses = original(*arguments)
        calls[0] += 1
        if calls[0] % 2 == 0 and calls[0] // 2 in broken:
            losses = replace(losses, total=losses.total * torch.nan, contrast=losses.contrast * torch.nan)
        return losses

    monkeypatch.setattr(ppa_fast.training.step, "objective", objective)


def test_max_skipped_consecutive_steps_stop_the_run_and_list_their_pairs(job, tiny, tmp_path, monkeypatch):
    inject(monkeypatch, {3, 5, 6, 7, 8, 9})
    with pytest.raises(UserError, match=r"^steps 5 to 7 were not finite .*max_skipped 3.*not_finite\.jsonl"):
        run_here({**job, "max_skipped": 3})
    lines = [json.loads(line) for line in (tmp_path / "run" / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 7]
    sampler = Sampler(len(Store.open(tiny.store)), 16, 3)
    for line in lines:
        assert line["pair_ids"] == sampler.draw(line["step"] - 1)[0].tolist()
        assert line["loss_moco"] is None
        assert line["loss_tlm"] > 0


def test_the_run_resumes_from_its_last_checkpoint(job, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        inject(patched, {3, 4, 5, 6})
        with pytest.raises(UserError, match="steps 3 to 5"):
            run_here({**job, "max_skipped": 3})
    ended = run_here({**job, "max_skipped": 3})
    assert ended["step"] == 9
    assert ended["skipped"] == 2  # steps 3 and 4 were saved as skipped; step 5 was repeated
    assert metrics(tmp_path / "run")[-1]["step"] == 9


def test_fewer_consecutive_steps_do_not_stop_the_run(job, tmp_path, monkeypatch):
    inject(monkeypatch, {2, 3, 5, 6, 8, 9})
    assert run_here({**job, "max_skipped": 3})["skipped"] == 6
    assert not (tmp_path / "run" / "not_finite.jsonl").exists()
