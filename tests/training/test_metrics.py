"""The metrics of a step: global means from sums, and rates without pauses."""

from __future__ import annotations

import pytest
import torch

from ppa_fast.data.loading.batching import StepTotals
from ppa_fast.model.objective import Weights
from ppa_fast.settings import Settings
from ppa_fast.training import distributed, metrics
from ppa_fast.training.metrics import DeferredAllReduce, StepMetrics, Throughput


def totals(masked: int, pairs: int, text_tokens: int = 0) -> StepTotals:
    return StepTotals(masked, text_tokens, (pairs,))


@pytest.fixture
def sums():
    values = {"tlm": torch.tensor(30.0), "contrast": torch.tensor(8.0), "top1": torch.tensor(3), "stop": False}
    with distributed.started() as device:
        yield DeferredAllReduce(values, device)


def test_tensors_and_numbers_are_summed(sums):
    assert sums.read() == {"tlm": 30.0, "contrast": 8.0, "top1": 3.0, "stop": 0.0}
    assert sums.read()["tlm"] == 30.0  # a second read gives the same values


def test_means_are_over_the_global_step(sums):
    found = StepMetrics(sums, Weights(0.5, 2.0, temperature=1.0), totals(10, 4), True, lr=0.1).read()
    means = {"loss": 5.5, "loss_tlm": 3.0, "loss_moco": 2.0, "queue_top1": 0.75}
    assert found == {**means, "stop": False, "applied": True, "lr": 0.1}


def test_the_contrast_determines_the_names_of_its_metrics(sums):
    found = StepMetrics(sums, Weights(0.5, 2.0, temperature=1.0), totals(10, 4), True, "symmetric").read()
    assert (found["loss_symmetric"], found["in_batch_top1"]) == (2.0, 0.75)
    assert not {"loss_moco", "queue_top1"} & found.keys()


def test_no_masked_position_gives_a_tlm_loss_of_0():
    with distributed.started() as device:
        sums = DeferredAllReduce({"tlm": torch.zeros(()), "contrast": 0.0, "top1": 0, "stop": True}, device)
        found = StepMetrics(sums, Weights(1.0, 1.0, 1.0), totals(0, 4), True).read()
    assert found["loss_tlm"] == 0
    assert found["stop"] is True


def test_throughput_excludes_pauses_and_restarts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        metrics.mfu, "step_flop", lambda config, settings, *counts: sum(counts) + settings.freeze_layers
    )
    throughput = Throughput(Settings(freeze_layers=1), None, peak=1000.0)
    throughput.count(totals(5, 10, text_tokens=100))  # with special tokens: 130 of TLM, 140 of MoCo
    now[0] = 2.0
    with throughput.paused():
        now[0] = 50.0
    throughput.count(totals(7, 10, text_tokens=100))
    now[0] = 52.0
    assert throughput.read() == {"pairs_per_s": 5.0, "tokens_per_s": 135.0, "mfu": 554 / 4 / 1000}
    throughput.count(totals(0, 3, text_tokens=6))
    now[0] = 53.0
    assert throughput.read() == {"pairs_per_s": 3.0, "tokens_per_s": 33.0, "mfu": 34 / 1000}


def test_an_objective_that_is_off_encodes_no_tokens(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics.mfu, "step_flop", lambda config, settings, tlm, contrast, masked: tlm + contrast)
    throughput = Throughput(Settings(moco=False), None)
    throughput.count(totals(5, 10, text_tokens=100))
    now[0] = 1.0
    assert throughput.read() == {"pairs_per_s": 10.0, "tokens_per_s": 130.0, "mfu": None}
