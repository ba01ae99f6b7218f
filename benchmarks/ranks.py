"""The trainer's own step, under DeepSpeed, in ranks of its own that step.py asks for a step at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from measuring import MACHINES
from steps import DIM, LEARNING_RATE, MOMENTUM, SEED, TEMPERATURE, Figures, Job, Step, set_dropout

from ppa_fast.settings import Settings
from ppa_fast.training import distributed
from ppa_fast.training.loop import Trainer
from ppa_fast.training.plan import make_plan

START_SECONDS, STEP_SECONDS = 300, 300


class Ranks(Step):
    """``world_size`` processes, each with an equal part of the job's pairs; ZeRO-1 in bf16, no ZeRO in fp32."""

    def __init__(self, job: Job, world_size: int) -> None:
        self.job = job
        config: dict[str, Any] = {"train_batch_size": job.pairs, "gradient_clipping": 1.0}
        config |= {"train_micro_batch_size_per_gpu": job.pairs // world_size, "zero_optimization": {"stage": 0}}
        if job.dtype == torch.bfloat16:
            config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
            config["zero_optimization"] = {"stage": 1}
        (job.folder / "deepspeed.json").write_text(json.dumps(config), encoding="utf-8")
        port = distributed.free_port()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job, rank, world_size, port), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._hear(START_SECONDS)

    def _hear(self, seconds: float) -> list[Any]:
        heard = []
        for pipe in self._pipes:
            if not pipe.poll(seconds):
                raise TimeoutError(f"a rank said nothing for {seconds:.0f} s")
            heard.append(pipe.recv())
        for answer in heard:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return heard

    def _ask(self, what: str, argument: float = 0.0) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((what, argument))
        return self._hear(STEP_SECONDS)

    def __call__(self) -> Figures:
        figures: Figures = self._ask("step")[0]
        return figures

    def set_dropout(self, share: float) -> None:
        self._ask("dropout", share)

    def peak(self) -> int | None:
        """Bytes that all ranks hold at their worst in a step."""
        peaks = self._ask("peak")
        return None if None in peaks else sum(peaks)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # which ends its rank
        for process in self._processes:
            process.join(30)


def _serve(pipe: Connection, job: Job, rank: int, world_size: int, port: int) -> None:
    """A rank. An answer that is text is an error."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with distributed.started() as device:
            before = MACHINES[device.type].held()
            trainer = _trainer(replace(job, device=device), world_size)
            pipe.send({})
            _answer(pipe, trainer, before)
            trainer.close()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def _answer(pipe: Connection, trainer: Trainer, before: int | None) -> None:
    """Answers until the pipe is closed."""
    while True:
        try:
            what, argument = pipe.recv()
        except EOFError:
            return
        if what == "dropout":
            set_dropout(trainer.engine.module, argument)
            pipe.send({})
        elif what == "step":
            figures = trainer.train_step().read()
            pipe.send({name: figures[name] for name in ("loss_tlm", "loss_moco", "grad_norm")})
        else:
            pipe.send(_peak(trainer, before))


def _peak(trainer: Trainer, before: int | None) -> int | None:
    machine = MACHINES[trainer.device.type]
    held, extra = machine.held(), machine.peak(lambda: trainer.train_step().read())
    return None if before is None or held is None or extra is None else max(0, held - before) + extra


def _trainer(job: Job, world_size: int) -> Trainer:
    settings = Settings(
        model=str(job.folder / "model"),
        data=str(job.folder / "store"),
        output=str(job.folder / "run"),
        deepspeed_config=str(job.folder / "deepspeed.json"),
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
    return Trainer(make_plan(settings, world_size), job.device)
