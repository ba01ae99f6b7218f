"""Gathers the state of a run from the ranks for a checkpoint, and restores it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from ppa_fast.errors import UserError
from ppa_fast.training.checkpoint import Checkpoints, read_state, read_tensors
from ppa_fast.training.step import TrainingStep


@dataclass
class RunState:
    """Counters of a run. ``step``: number of global steps done, of which ``applied`` changed the weights and
    ``skipped`` did not. ``saved``: step of the latest checkpoint; ``best``: mean P@1 of the best evaluation, None
    before the first."""

    step: int = 0
    applied: int = 0
    skipped: int = 0
    saved: int = 0
    best: float | None = None


def save_state(checkpoints: Checkpoints, state: RunState, training_step: TrainingStep, best: bool) -> None:
    """Writes a checkpoint of everything that the next step depends on, from rank 0; call it on every rank.

    ``best``: whether this step's evaluation is the best so far.
    """
    masters, queue, plan = training_step.masters, training_step.queue, training_step.plan
    rank = dist.get_rank()

    def gather(tensors: list[Tensor]) -> dict[str, Tensor]:
        """Gathers full tensors by name on rank 0's CPU; collective over the ranks."""
        return {name: complete.cpu() for name, complete in masters.gather(tensors) if rank == 0}

    tensors = {"query": {**training_step.frozen, **gather(masters.tensors)}}
    for name in ("exp_avg", "exp_avg_sq"):
        tensors[name] = gather(masters.moments(name))
    if training_step.momentum and queue:
        keys, groups = queue.content()
        tensors["momentum"] = gather(training_step.momentum.tensors)
        tensors["queue"] = {"keys": keys, "groups": groups}
    if rank == 0:
        content = {
            "step": state.step,
            "steps": plan.steps,
            "applied": state.applied,
            "skipped": state.skipped,
            "best": state.best,
            "cursor": queue.cursor if queue else 0,
            "loss_scaler": masters.loss_scaler,
            "batch": plan.config.batch,
            "store": plan.data.fingerprint,
            "world_size": training_step.world,
            "bf16_products": plan.bf16_products,
            "settings": dataclasses.asdict(plan.settings),
        }
        checkpoints.save(state.step, content, tensors, best)
        checkpoints.prune(plan.settings.keep)
    state.saved = state.step
    dist.barrier()


def load_state(path: Path, training_step: TrainingStep) -> RunState:
    """Restores weights, moments, momentum encoder and queue from a checkpoint; returns its counters.

    Raises UserError if names or shapes of its weights differ from the model's.
    """
    content, query = read_state(path), read_tensors(path, "query")
    masters, queue = training_step.masters, training_step.queue
    found = {name: tensor.shape for name, tensor in query.items()}
    expected = {**masters.shapes, **{name: tensor.shape for name, tensor in training_step.frozen.items()}}
    if found != expected:
        odd, _ = min(found.items() ^ expected.items())
        model = training_step.plan.settings.model
        raise UserError(
            f"{path / 'query.safetensors'}: found weights that differ from those of {model}, such as {odd}; expected "
            "the model that the run began with, or another output"
        )
    masters.set_weights(query)
    masters.set_step(content["applied"])
    masters.loss_scaler = content["loss_scaler"]
    for name in ("exp_avg", "exp_avg_sq"):
        masters.scatter(masters.moments(name), read_tensors(path, name))
    if training_step.momentum and queue:
        masters.scatter(training_step.momentum.tensors, read_tensors(path, "momentum"))
        training_step.momentum.refresh()
        saved, device = read_tensors(path, "queue"), training_step.device
        queue.fill(saved["keys"].to(device), saved["groups"].to(device), content["cursor"])
    return RunState(content["step"], content["applied"], content["skipped"], content["step"], content["best"])
