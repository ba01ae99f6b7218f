"""Steps that are not finite: what breaks them, and what must be as before. Also a script for several ranks:
``python poison.py JOBS.json``; only the last rank meets the poison."""

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
from ppa_fast.training import distributed
from ppa_fast.training.loop import Trainer, learning_rate
from ppa_fast.training.plan import make_plan


def _loss(result: Any, query: Tensor) -> Any:
    loss, top1 = result
    return loss + torch.inf, top1  # with finite gradients


def _gradient(result: Any, query: Tensor) -> Any:
    loss, top1 = result
    return loss + (query.sum() * 0).sqrt(), top1  # adds 0; the root's slope at 0 times 0 is NaN


def _key(result: Any, *_: Any) -> Any:
    result[0, 0] = torch.inf
    return result


def _tlm(result: Any, *_: Any) -> Any:
    return result * torch.nan


POISONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "loss": ("ppa_fast.model.objective.infonce", _loss),
    "gradient": ("ppa_fast.model.objective.infonce", _gradient),
    "key": ("ppa_fast.model.momentum.MomentumEncoder.keys", _key),
    "tlm": ("ppa_fast.model.alignment.masked_lm_loss", _tlm),
}


@contextmanager
def poisoned(kind: str) -> Iterator[None]:
    """The first micro-batch met inside is not finite."""
    target, spoil = POISONS[kind]
    module, _, name = target.rpartition(".")
    owner = ppa_fast.model.momentum.MomentumEncoder if name == "keys" else sys.modules[module]
    original, fresh = getattr(owner, name), [True]

    def replacement(*arguments: Any) -> Any:
        result = original(*arguments)
        return spoil(result, arguments[0]) if fresh and fresh.pop() else result

    with mock.patch.object(owner, name, replacement):
        yield
    assert not fresh, f"{target} was not called"


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Copies of all that a step moves, as this rank holds it."""
    masters, momentum, queue = trainer.masters, trainer.momentum, trainer.queue
    kept: dict[str, Any] = {
        "masters": masters.tensors,
        "working weights": [getattr(p, "ds_tensor", p) for p in trainer.engine.module.parameters()],
        "exp_avg": masters.moments("exp_avg"),
        "exp_avg_sq": masters.moments("exp_avg_sq"),
        "adam's step": masters.moments("step"),
        "momentum master": momentum.tensors,
        "momentum working copy": list(momentum.model.parameters()),
        "queue": [queue.vectors * queue.live[:, None], queue.groups * queue.live, queue.live, *queue.content()],
    }
    kept = {name: [t.detach().clone() for t in tensors] for name, tensors in kept.items()}
    rate = learning_rate(trainer.settings, trainer.applied, trainer.plan.steps)
    return {**kept, "cursor": queue.cursor, "count": queue.count, "applied": trainer.applied, "learning rate": rate}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not equal bit for bit."""
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
    """Runs a job with each poison on the last rank and asserts, on every rank, that nothing of it is left."""
    world = distributed.world_size()
    trainer = Trainer(make_plan(Settings(**job), world), device)
    here = trainer.rank == world - 1
    trainer.train_step()
    for number, kind in enumerate(POISONS, 1):
        before = snapshot(trainer)
        with poisoned(kind) if here else nullcontext():
            metrics = trainer.train_step().read()
        assert metrics["skipped"] == trainer.skipped == number, (kind, metrics)
        assert not differing(before, snapshot(trainer)), (kind, differing(before, snapshot(trainer)))
    metrics = trainer.train_step().read()
    assert metrics["skipped"] == len(POISONS)
    after = snapshot(trainer)
    # What was not poisoned at all: the same first step, then the last one.
    trainer.close()
    straight = Trainer(make_plan(Settings(**{**job, "output": job["output"] + "-straight"}), world), trainer.device)
    straight.train_step()
    straight.step += len(POISONS)
    expected = straight.train_step().read()
    assert {**expected, "skipped": metrics["skipped"]} == metrics
    assert not differing(snapshot(straight), after), differing(snapshot(straight), after)
    # And the ranks hold the same weights.
    sums: list[Any] = [None] * world
    weights = list(straight.engine.module.parameters())
    with deepspeed.zero.GatheredParameters(weights, enabled=straight.masters.stage == 3):
        dist.all_gather_object(sums, [float(p.double().sum()) for p in weights])
    assert all(one == sums[0] for one in sums)
    # Which can be gathered in slices of any size.
    whole = dict(straight.masters.gather(straight.masters.tensors))
    with mock.patch("ppa_fast.training.zero.BUFFER", 1000):
        sliced = dict(straight.masters.gather(straight.masters.tensors))
    assert whole.keys() == sliced.keys()
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)
    straight.close()


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        jobs = json.load(f)
    with distributed.started() as device:
        for each in jobs:
            check(each, device)
