"""Fills the queue before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ppa_fast.data.loading.batching import micro_batches
from ppa_fast.model.queue import NO_GROUP
from ppa_fast.ops.philox import torch_seed
from ppa_fast.progress import Progress
from ppa_fast.training.step import TrainingStep

CHUNK = 256  # pairs encoded at once, on average


def fill_queue(training_step: TrainingStep) -> None:
    """Fills the queue with keys of the last min(K, pairs) pairs in epoch 0's order, or with random unit vectors
    (``queue_warmup``). The ranks split the pairs and end with the same queue."""
    plan, device = training_step.plan, training_step.device
    momentum, queue = training_step.momentum, training_step.queue
    assert momentum is not None
    assert queue is not None
    settings, epoch_length = plan.settings, plan.sampler.per_epoch
    if settings.queue_warmup == "random":
        generator = torch.Generator().manual_seed(torch_seed(settings.seed, 0, 1))
        vectors = torch.randn(settings.queue_size, queue.vectors.shape[1], generator=generator)
        groups = torch.full((settings.queue_size,), NO_GROUP, dtype=torch.int64, device=device)
        queue.fill(torch.nn.functional.normalize(vectors, dim=1).to(device), groups)
        return
    count = min(settings.queue_size, epoch_length)
    rows, epochs = plan.sampler.at(np.arange(epoch_length - count, epoch_length, dtype=np.int64))
    parts, rank, world = -(-count // CHUNK), training_step.rank, training_step.world
    mine = []
    with Progress("fill the queue", count, "keys", enabled=rank == 0) as bar:
        for batch in micro_batches(training_step.packer, rows, epochs, parts, rank, world, training_step.pinned):
            keys = momentum.keys(training_step.assemble(batch.to(device)).key)
            # Copy: sending a view would send its complete buffer.
            mine.append((batch.step_indices.clone(), keys.cpu(), batch.groups.clone()))
            bar.update(sum(batch.totals.pairs[batch.number : batch.number + world]))
    everyone: list[Any] = [mine] * world
    dist.all_gather_object(everyone, mine)
    keys, groups = torch.empty(count, queue.vectors.shape[1]), torch.empty(count, dtype=torch.int64)
    for part in everyone:
        for indices, chunk_keys, chunk_groups in part:
            keys[indices], groups[indices] = chunk_keys, chunk_groups
    queue.fill(keys.to(device), groups.to(device))
