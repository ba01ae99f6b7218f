"""A step's figures: global means from sums, and rates that pauses do not spoil."""

from __future__ import annotations

import pytest
import torch

from ppa_fast.model.objective import Weights
from ppa_fast.training import distributed, figures
from ppa_fast.training.figures import Figures, LateSums, Rates


@pytest.fixture
def sums():
    values = {"tlm": torch.tensor(30.0), "moco": torch.tensor(8.0), "top1": torch.tensor(3), "stop": False}
    with distributed.started() as device:
        yield LateSums(values, device)


def test_sums_of_tensors_and_numbers(sums):
    assert sums.read() == {"tlm": 30.0, "moco": 8.0, "top1": 3.0, "stop": 0.0}
    assert sums.read()["tlm"] == 30.0  # again


def test_means_are_over_the_step(sums):
    found = Figures(sums, Weights(tlm=0.5, moco=2.0, temperature=1.0), masked=10, pairs=4, lr=0.1).read()
    assert found == {"loss": 5.5, "loss_tlm": 3.0, "loss_moco": 2.0, "queue_top1": 0.75, "stop": False, "lr": 0.1}


def test_nothing_masked_is_a_loss_of_0():
    with distributed.started() as device:
        sums = LateSums({"tlm": torch.zeros(()), "moco": 0.0, "top1": 0, "stop": True}, device)
        found = Figures(sums, Weights(1.0, 1.0, 1.0), masked=0, pairs=4).read()
    assert found["loss_tlm"] == 0
    assert found["stop"] is True


def test_rates_leave_pauses_out_and_start_anew(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(figures.time, "monotonic", lambda: now[0])
    rates = Rates(peak=1000.0)
    rates.count(10, 100, 400)
    now[0] = 2.0
    with rates.paused():
        now[0] = 50.0
    rates.count(10, 100, 600)
    now[0] = 52.0
    assert rates.read() == {"pairs_per_s": 5.0, "tokens_per_s": 50.0, "mfu": 0.25}
    rates.count(3, 6, 100)
    now[0] = 53.0
    assert rates.read() == {"pairs_per_s": 3.0, "tokens_per_s": 6.0, "mfu": 0.1}


def test_utilisation_of_an_unknown_peak_is_unknown():
    rates = Rates()
    rates.count(1, 1, 1)
    assert rates.read()["mfu"] is None
