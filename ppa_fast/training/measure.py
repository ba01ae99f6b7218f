"""Measures the speed of training steps on this machine, and the micro-batch that fits in its memory."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ppa_fast.errors import is_out_of_memory
from ppa_fast.files import write_json
from ppa_fast.settings import Settings
from ppa_fast.training import distributed, mfu, preflight
from ppa_fast.training.step import TrainingStep

log = logging.getLogger(__name__)

MOST_STEPS, SECONDS = 3, 5.0  # steps are timed until one of these is reached, after one step that is not timed
PAIRS = 64  # a measured step has at least this many; with fewer, the optimizer's update would take too large a share
MOST_MEMORY = 0.5  # share of the device's memory; later micro-batches have longer sentences than those measured


class Measured(NamedTuple):
    """The micro-batch that fits, in pairs, and the speed of one rank in pairs per second."""

    micro_batch: int
    pairs_per_s: float


def measure(settings: Settings, config: Mapping[str, Any], ranks: int) -> Measured:
    """Runs a few training steps on one rank in this process, without a checkpoint or log.

    Reduces the micro-batch of ``config`` by half or more until the steps need at most the share ``MOST_MEMORY`` of the
    device's memory. A micro-batch always divides the pairs of a rank. The speed does not influence it, so that the same
    call makes the same choice again.

    Args:
        settings: the settings of the run. This function writes their DeepSpeed file: ``config`` with the micro-batch
            and a small global batch.
        config: the DeepSpeed configuration, with the global batch of ``ranks`` ranks.

    Raises UserError in the same cases as :func:`preflight.check`, and the error of the device if even one pair does
    not fit.
    """
    of_rank = config["train_batch_size"] // ranks
    micro_batch = min(config["train_micro_batch_size_per_gpu"], of_rank)
    while True:
        batch = min(max(PAIRS, micro_batch), of_rank) // micro_batch * micro_batch
        sizes = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro_batch}
        write_json(Path(settings.deepspeed_config), {**config, **sizes})
        try:
            pairs_per_s, memory = _steps(settings)
        except Exception as error:
            if micro_batch == 1 or not is_out_of_memory(error):
                raise
            memory = 1.0
        if memory <= MOST_MEMORY or micro_batch == 1:
            return Measured(micro_batch, pairs_per_s)
        smaller = next(size for size in range(micro_batch // 2, 0, -1) if of_rank % size == 0)
        log.info(f"a micro-batch of {micro_batch} pairs needs too much memory; trying {smaller}")
        micro_batch = smaller
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _steps(settings: Settings) -> tuple[float, float]:
    """The speed in pairs per second, and the share of the device's memory that the steps needed."""
    plan = preflight.check(settings, 1)
    with distributed.started() as device:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        training_step = TrainingStep(plan, device)
        try:
            training_step(0, 0.0, 1.0).read()
            begin, steps = time.perf_counter(), 0
            while steps < MOST_STEPS and (not steps or time.perf_counter() - begin < SECONDS):
                steps += 1
                training_step(steps, 0.0, 1.0).read()
            seconds = time.perf_counter() - begin
        finally:
            training_step.close()
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
        else:
            total = psutil.virtual_memory().total
        return steps * plan.config.batch / seconds, mfu.peak_memory(device) * 2**30 / total
