r"""Steps that are not finite: the faults, and the state that must not change.

Also a script for several ranks: ``python fault_injection.py JOBS.json``. Only the last rank has the fault.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

import ppa_fast.model.alignment
import ppa_fast.model.momentum
import ppa_fast.model.objective
from ppa_fast.settings import Settings
from ppa_fast.training import distributed, preflight
from ppa_fast.training.trainer import Trainer, learning_rate


def _loss(result: Any, query: Tensor) -> Any:
    loss, top1 = result
    return loss + torch.inf, top1  # with finite gradients


def _gradient(result: Any, query: Tensor) -> Any:
    loss, top1 = result
    return loss + (
        query.sum() * 0
    ).sqrt(), top1  # adds 0; its gradient is NaN, because the slope of the root at 0 is infinite


def _key(result: Any, *_: Any) -> Any:
    result[0, 0] = torch.inf
    return result


def _tlm(result: Any, *_: Any) -> Any:
    return result * torch.nan


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "loss": ("ppa_fast.model.objective.infonce", _loss),
    "gradient": ("ppa_fast.model.objective.infonce", _gradient),
    "key": ("ppa_fast.model.momentum.MomentumEncoder.keys", _key),
    "tlm": ("ppa_fast.model.alignment.masked_lm_loss", _tlm),
}


@contextmanager
def injected(kind: str) -> Iterator[None]:
    """Within this context, the first micro-batch is not finite."""
    target, corrupt = FAULTS[kind]
    module, _, name = target.rpartition(".")
    owner = ppa_fast.model.momentum.MomentumEncoder if name == "keys" else sys.modules[module]
    original, fresh = getattr(owner, name), [True]

    def replacement(*arguments: Any) -> Any:
        result = original(*arguments)
        return corrupt(result, arguments[0]) if fresh and fresh.pop() else result

    with mock.patch.object(owner, name, replacement):
        yield
    assert not fresh, f"{target} was not called"


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Copies of everything that a step changes, as this rank holds it."""
    masters, momentum, queue = (
        trainer.training_step.masters,
        trainer.training_step.momentum,
        trainer.training_step.queue,
    )
    kept: dict[str, Any] = {
        "masters": masters.tensors,
        "working weights": [getattr(p, "ds_tensor", p) for p in trainer.training_step.engine.module.parameters()],
        "exp_avg": masters.moments("exp_avg"),
        "exp_avg_sq": masters.moments("exp_avg_sq"),
        "adam's step": masters.moments("step"),
        "momentum master": momentum.tensors,
        "momentum working copy": list(momentum.model.parameters()),
        "queue": [queue.vectors * queue.live[:, None], queue.groups * queue.live, queue.live, *queue.content()],
    }
    kept = {name: [t.detach().clone() for t in tensors] for name, tensors in kept.items()}
    rate = learning_rate(trainer.settings, trainer.state.applied, trainer.plan.steps)
    return {
        **kept,
        "cursor": queue.cursor,
        "count": queue.count,
        "applied": trainer.state.applied,
        "learning rate": rate,
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of values that are not equal bit for bit."""
    return [
        name
        for name, value in one.items()
        if not (
            all(torch.equal(a, b) for a, b in zip(value, other[name], strict=True))
            if isinstance(value, list)
            else value == other[name]
        )
    ]


def check(job: dict[str, Any], device: torch.device) -> None:
    """Runs a job with each fault on the last rank. Asserts on every rank that the fault leaves no trace."""
    world = distributed.world_size()
    trainer = Trainer(preflight.check(Settings(**job), world), device)
    here = trainer.rank == world - 1
    trainer.train_step()
    for number, kind in enumerate(FAULTS, 1):
        before = snapshot(trainer)
        with injected(kind) if here else nullcontext():
            metrics = trainer.train_step().read()
        assert metrics["skipped"] == trainer.state.skipped == number, (kind, metrics)
        assert not differing(before, snapshot(trainer)), (kind, differing(before, snapshot(trainer)))
    metrics = trainer.train_step().read()
    assert metrics["skipped"] == len(FAULTS)
    after = snapshot(trainer)
    # The run without faults: the same first step, then the last one.
    trainer.close()
    straight = Trainer(
        preflight.check(Settings(**{**job, "output": job["output"] + "-straight"}), world), trainer.device
    )
    straight.train_step()
    straight.state.step += len(FAULTS)
    expected = straight.train_step().read()
    assert {**expected, "skipped": metrics["skipped"]} == metrics
    assert not differing(snapshot(straight), after), differing(snapshot(straight), after)
    # The ranks have equal weights.
    sums: list[Any] = [None] * world
    weights = list(straight.training_step.engine.module.parameters())
    with deepspeed.zero.GatheredParameters(weights, enabled=straight.training_step.masters.stage == 3):
        dist.all_gather_object(sums, [float(p.double().sum()) for p in weights])
    assert all(one == sums[0] for one in sums)
    # The weights can be gathered in slices of any size.
    whole = dict(straight.training_step.masters.gather(straight.training_step.masters.tensors))
    with mock.patch("ppa_fast.training.zero.BUFFER", 1000):
        sliced = dict(straight.training_step.masters.gather(straight.training_step.masters.tensors))
    assert whole.keys() == sliced.keys()
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)
    straight.close()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        jobs = json.load(f)
    with distributed.started() as device:
        for each in jobs:
            check(each, device)
