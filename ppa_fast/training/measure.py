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

TIMED_STEPS = 3  # after one step that is not timed
MOST_MICRO_BATCHES = 8  # of a measured step; with fewer, the share of the optimizer's update would be too large
MOST_MEMORY = 0.5  # of the device: later micro-batches have longer sentences than those measured


class Measured(NamedTuple):
    """The micro-batch that fits, in pairs, and the speed of one rank in pairs per second."""

    micro_batch: int
    pairs_per_s: float


def measure(settings: Settings, config: Mapping[str, Any], ranks: int) -> Measured:
    """Runs a few training steps on one rank in this process, without a checkpoint or log.

    Halves the micro-batch until the steps need at most the share ``MOST_MEMORY`` of the device's memory.

    Args:
        settings: of the run. Its DeepSpeed file is written: ``config`` with the micro-batch and a small global batch.
        config: the DeepSpeed configuration, with the global batch of ``ranks`` ranks.

    Raises UserError as :func:`preflight.check`, and the error of the device if even one pair does not fit.
    """
    micro_batch = int(config["train_micro_batch_size_per_gpu"])
    while True:
        micro_batches = min(MOST_MICRO_BATCHES, config["train_batch_size"] // (ranks * micro_batch))
        sizes = {"train_batch_size": micro_batches * micro_batch, "train_micro_batch_size_per_gpu": micro_batch}
        write_json(Path(settings.deepspeed_config), {**config, **sizes})
        try:
            pairs_per_s, memory = _steps(settings)
        except Exception as error:
            if micro_batch == 1 or not is_out_of_memory(error):
                raise
            memory = 1.0
        if memory <= MOST_MEMORY or micro_batch == 1:
            return Measured(micro_batch, pairs_per_s)
        log.info(f"a micro-batch of {micro_batch} pairs needs too much memory; trying {micro_batch // 2}")
        micro_batch //= 2
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
            for step in range(1 + TIMED_STEPS):
                if step == 1:
                    begin = time.perf_counter()
                training_step(step, 0.0, 1.0).read()
            seconds = time.perf_counter() - begin
        finally:
            training_step.close()
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
        else:
            total = psutil.virtual_memory().total
        return TIMED_STEPS * plan.config.batch / seconds, mfu.peak_memory(device) * 2**30 / total
