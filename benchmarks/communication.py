"""Counts the collectives of one global step between ranks, by ZeRO stage.

    python benchmarks/communication.py [--stages 0,1,2,3] [--precisions fp32,bf16] [--ranks 2] [--accumulation 1,2]
        [--gradients fp32|bf16]

It runs the trainer's own step on a small model, in gloo ranks on this CPU. A hook in PyTorch's dispatcher records the
tensors of every collective. The counts are the elements that were reduced or gathered, as a multiple of P, the number
of trained parameters. docs/scaling.md explains how much a rank sends for that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from step import SIZES, make
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppa_fast.settings import Settings
from ppa_fast.training import distributed

SIZE = SIZES["quick"]
PAIRS = 32
WARM_UP = 2  # steps; DeepSpeed's stage 3 records the order of the modules in the first one


class Collectives(TorchDispatchMode):
    """Counts the collectives of this rank: ``found`` maps (name, element type) to (calls, elements)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[str, str], list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = _tensors(args)
            # The larger of inputs and outputs: the result of a gather, the operand of a reduction.
            largest = max((_elements(each) for each in args if _tensors([each])), default=0)
            if tensors:
                dtype = str(tensors[0].dtype).removeprefix("torch.")
                count = self.found.setdefault((func._schema.name.removeprefix("c10d::").strip("_"), dtype), [0, 0])
                count[0] += 1
                count[1] += largest
        return func(*args, **(kwargs or {}))


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [t for v in values for t in _tensors(v)] if isinstance(values, (list, tuple)) else []


def _elements(value: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(value))


def configuration(stage: int, precision: str, ranks: int, accumulation: int, gradients: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "train_batch_size": PAIRS,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 1.0,
        "communication_data_type": gradients,
    }
    values["train_micro_batch_size_per_gpu"] = PAIRS // (ranks * accumulation)
    if stage == 3:  # smaller parameters are not partitioned; DeepSpeed's 100,000 would exclude this small model
        values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if precision == "bf16":
        values["bf16"] = {"enabled": True}
        if stage:
            values["data_types"] = {"grad_accum_dtype": "fp32"}
    return values


def serve(to: Connection, folder: Path, names: Sequence[str], rank: int, ranks: int, port: int) -> None:
    """A rank: for each DeepSpeed file, sends the number of parameters and the :class:`Collectives` of a step."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    with distributed.started() as device:
        measure(to, folder, names, ranks, device)


def measure(to: Connection, folder: Path, names: Sequence[str], ranks: int, device: torch.device) -> None:
    from ppa_fast.training import preflight
    from ppa_fast.training.trainer import Trainer

    for name in names:
        settings = Settings(
            model=str(folder / "model"),
            data=str(folder / "store"),
            output=str(folder / f"run {name}"),
            deepspeed_config=str(folder / f"{name}.json"),
            steps=100,
            queue_size=SIZE.queue,
            queue_warmup="random",
        )
        trainer = Trainer(preflight.check(settings, ranks), device)
        for _ in range(WARM_UP):
            trainer.train_step().read()
        with Collectives() as collectives:
            trainer.train_step().read()
        to.send((sum(shape.numel() for shape in trainer.training_step.masters.shapes.values()), collectives.found))
        torch.distributed.barrier()
        trainer.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collectives of a step: see the head of this file.")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--accumulation", default="1,2")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--gradients", choices=("fp32", "bf16"), default="fp32", help="their type between ranks")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, SIZE)
        names = []
        for stage in map(int, options.stages.split(",")):
            for precision in options.precisions.split(","):
                for accumulation in map(int, options.accumulation.split(",")):
                    names.append(f"stage {stage} {precision} accumulation {accumulation}")
                    values = configuration(stage, precision, options.ranks, accumulation, options.gradients)
                    (folder / f"{names[-1]}.json").write_text(json.dumps(values), encoding="utf-8")
        context, port, pipes, running = multiprocessing.get_context("spawn"), distributed.free_port(), [], []
        for rank in range(options.ranks):
            receive, send = context.Pipe(duplex=False)
            arguments = (send, folder, names, rank, options.ranks, port)
            running.append(context.Process(target=serve, args=arguments, daemon=True))
            running[-1].start()
            send.close()  # so that the pipe closes when the process exits
            pipes.append(receive)
        for name in names:
            (parameters, found), *_ = [pipe.recv() for pipe in pipes]
            print(f"{name}, P = {parameters:,}", flush=True)
            for (operation, dtype), (calls, elements) in sorted(found.items()):
                print(f"    {operation:<24}{dtype:<10}{calls:>5} calls {elements / parameters:>8.3f} P", flush=True)
        for process in running:
            process.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
