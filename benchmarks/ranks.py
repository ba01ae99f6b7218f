"""The trainer's own step under DeepSpeed, in separate ranks that step.py controls step by step."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import MACHINES
from profiling import profiled
from steps import DIM, LEARNING_RATE, MOMENTUM, SEED, TEMPERATURE, Figures, Job, Step, set_dropout

from ppa_fast.settings import Settings
from ppa_fast.training import distributed, preflight
from ppa_fast.training.trainer import Trainer

START_SECONDS, STEP_SECONDS = 300, 300


def deepspeed_config(job: Job, micro_batch: int) -> dict[str, Any]:
    """ZeRO-1 with bf16 weights and fp32 gradients; on a CPU no ZeRO, fp32 weights, and products in the precision that
    the trainer chooses."""
    config: dict[str, Any] = {"train_batch_size": job.pairs, "train_micro_batch_size_per_gpu": micro_batch}
    config |= {"gradient_clipping": 1.0, "zero_optimization": {"stage": 0}}
    if job.dtype == torch.bfloat16 and job.device.type == "cuda":
        # The default, bf16, rounds the gradients before Adam, even on one rank.
        config |= {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
        config |= {"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 1}}
    return config


class Ranks(Step):
    """``world_size`` processes, each with an equal part of the job's pairs in micro-batches of ``micro_batch``. The
    processes start immediately; the first call waits until they are ready."""

    def __init__(self, job: Job, world_size: int, micro_batch: int) -> None:
        self.job = job
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=job.folder))
        config = deepspeed_config(job, micro_batch)
        (self._folder / "deepspeed.json").write_text(json.dumps(config), encoding="utf-8")
        port = distributed.free_port()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, job, self._folder, rank, world_size, port)
            process = context.Process(target=_run_rank, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._ready = False

    def _receive(self, seconds: float) -> list[Any]:
        heard = []
        for pipe in self._pipes:
            if not pipe.poll(seconds):
                raise TimeoutError(f"a rank did not answer within {seconds:.0f} s")
            heard.append(pipe.recv())
        for answer in heard:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return heard

    def _request(self, what: str, argument: float = 0.0) -> list[Any]:
        if not self._ready:
            self._receive(START_SECONDS)
            self._ready = True
        for pipe in self._pipes:
            pipe.send((what, argument))
        return self._receive(STEP_SECONDS)

    def __call__(self) -> Figures:
        figures: Figures = self._request("step")[0]
        return figures

    def set_dropout(self, share: float) -> None:
        self._request("dropout", share)

    def at(self, number: int) -> Figures:
        figures: Figures = self._request("at", number)[0]
        return figures

    def peak(self, number: int) -> int | None:
        """Peak bytes of all ranks together in step ``number``, which is an extra step."""
        peaks = self._request("peak", number)
        return None if None in peaks else sum(peaks)

    def profile(self, count: int) -> dict[str, Any]:
        """Profiles the device of the first rank in the next ``count`` steps, see ``profiling.profiled``."""
        profile: dict[str, Any] = self._request("profile", count)[0]
        return profile

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # the rank exits
        for process in self._processes:
            process.join(30)
        shutil.rmtree(self._folder, ignore_errors=True)


def _run_rank(pipe: Connection, job: Job, folder: Path, rank: int, world_size: int, port: int) -> None:
    """Runs a rank. An answer that is a string is an error."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with distributed.started() as device:
            before = MACHINES[device.type].held()
            trainer = _trainer(replace(job, device=device), folder, world_size)
            pipe.send({})
            _answer(pipe, trainer, before)
            trainer.close()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _answer(pipe: Connection, trainer: Trainer, before: int | None) -> None:
    """Answers requests until the pipe is closed."""
    while True:
        try:
            what, argument = pipe.recv()
        except EOFError:
            return
        if what == "dropout":
            set_dropout(trainer.training_step.engine.module, argument)
            pipe.send({})
        elif what == "step":
            pipe.send(_figures(trainer))
        elif what == "at":
            pipe.send(_run_step(trainer, int(argument)))
        elif what == "profile":
            pipe.send(profiled(trainer.device, int(argument), lambda: _figures(trainer)))
        else:
            pipe.send(_peak(trainer, before, int(argument)))


def _figures(trainer: Trainer) -> dict[str, float]:
    """Runs the next step."""
    figures = trainer.train_step().read()
    return {name: figures[name] for name in ("loss_tlm", "loss_moco", "grad_norm")}


def _run_step(trainer: Trainer, number: int) -> dict[str, float]:
    """Runs step ``number`` without changing which step is next."""
    following, trainer.state.step = trainer.state.step, number
    figures = _figures(trainer)
    trainer.state.step = following
    return figures


def _peak(trainer: Trainer, before: int | None, number: int) -> int | None:
    machine = MACHINES[trainer.device.type]
    held, extra = machine.held(), machine.peak(lambda: _run_step(trainer, number))
    return None if before is None or held is None or extra is None else max(0, held - before) + extra


def _trainer(job: Job, folder: Path, world_size: int) -> Trainer:
    settings = Settings(
        model=str(job.folder / "model"),
        data=str(job.folder / "store"),
        output=str(folder / "run"),
        deepspeed_config=str(folder / "deepspeed.json"),
        seed=SEED,
        steps=10**6,
        learning_rate=LEARNING_RATE,
        warmup=0.0,
        schedule="constant",
        projection_dim=DIM,
        temperature=TEMPERATURE,
        queue_size=job.queue,
        queue_warmup="random",
        momentum=MOMENTUM,
    )
    return Trainer(preflight.check(settings, world_size), job.device)
