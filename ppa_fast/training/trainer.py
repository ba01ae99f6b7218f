"""Training runs: the loop over global steps, with schedule, logs, evaluations and checkpoints."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ppa_fast.errors import UserError
from ppa_fast.files import folder_lock, remove_folder, write_errors, write_text
from ppa_fast.model.folder import save_base
from ppa_fast.ops import library
from ppa_fast.progress import Progress
from ppa_fast.ranks import check_ranks
from ppa_fast.settings import Settings, write_yaml
from ppa_fast.training import distributed, mfu, preflight
from ppa_fast.training.checkpoint import Checkpoints
from ppa_fast.training.evaluation import evaluate_pairs
from ppa_fast.training.json_lines import JsonLines, plain
from ppa_fast.training.metrics import CONTRAST_METRICS, StepMetrics, Throughput
from ppa_fast.training.preflight import NOT_FINITE, RunPlan, sampling_table
from ppa_fast.training.queue_warmup import fill_queue
from ppa_fast.training.rank_monitor import watched
from ppa_fast.training.state import RunState, load_state, save_state
from ppa_fast.training.step import TrainingStep

log = logging.getLogger(__name__)

MOMENTUM_START = 0.9  # for the warm-up; at 0, keys come from the query encoder and the contrast collapses


def train(settings: Settings) -> dict[str, Any]:
    """Aligns ``settings.model`` with the pairs in ``settings.data``; writes the run folder ``settings.output``.

    Call it on every rank, as the deepspeed launcher does with ``ppa_fast/train.py``, or directly for one rank.

    Returns:
        ``{"step": steps done, "steps": planned, "skipped": …, "evaluation": the last one or None}``.

    Raises:
        UserError: a check of ``training.preflight`` or ``ranks`` fails before training; a file of the run cannot be
            read or written; or ``max_skipped`` consecutive steps are not finite. If another rank fails or is lost, this
            process exits instead, see ``training.rank_monitor``.
    """
    check_ranks()
    with ExitStack() as ends, watched():
        plan = preflight.check(settings, distributed.world_size())
        if distributed.rank() == 0:
            ends.enter_context(folder_lock(Path(settings.output), "another training run"))
            log.info(sampling_table(plan.data.counts, plan.sampling_counts))
            if plan.bf16_products:
                log.info(
                    "matrix products are computed in bf16, which is faster on this CPU; weights, sums and losses are "
                    f'fp32. For fp32 products, write "bf16": {{"enabled": false}} in {plan.config.path}'
                )
            for warning in plan.warnings:
                log.warning(warning)
        device = ends.enter_context(distributed.started())
        if distributed.rank() == 0 and (reason := library.why_not_native(device.type)):
            log.warning(
                f"the operations run on PyTorch's reference implementations, which are slower: {reason}; "
                "ppa-fast doctor says how to build the native ones"
            )
        trainer = Trainer(plan, device)
        ends.callback(trainer.close)
        return trainer.fit()


def learning_rate(settings: Settings, applied: int, steps: int) -> float:
    """The learning rate after ``applied`` of ``steps`` steps: linear warm-up to the peak over the first ``warmup``
    share, then linear decay that reaches 0 one step after the last, or a constant rate."""
    rising = max(1, round(settings.warmup * steps))
    if applied < rising:
        return settings.learning_rate * (applied + 1) / rising
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * max(0, steps - applied) / max(1, steps - rising + 1)


def key_momentum(settings: Settings, applied: int, steps: int) -> float:
    """The momentum m after ``applied`` of ``steps`` steps. Over the first ``momentum_warmup`` share, 1 − m decreases
    geometrically from max(0.1, 1 − ``momentum``) to 1 − ``momentum``."""
    rising, target = settings.momentum_warmup * steps, settings.momentum
    if applied >= rising:
        return target
    share, start = applied / rising, min(MOMENTUM_START, target)
    return 1 - float((1 - start) ** (1 - share) * (1 - target) ** share)


class Trainer:
    """A new or resumed run on one rank: ``training_step`` computes steps, ``state`` has the counters."""

    def __init__(self, plan: RunPlan, device: torch.device) -> None:
        self.plan, self.settings, self.device = plan, plan.settings, device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.training_step = TrainingStep(plan, device)
        self.monitor = self.training_step.engine.monitor
        self.monitor.enabled = False  # the engine would synchronize each step to write the loss again
        self.state = RunState()
        self.not_finite: list[dict[str, Any]] = []  # records of the latest consecutive non-finite steps
        self.run = Path(plan.settings.output)
        self.checkpoints = Checkpoints(self.run)
        self.signal = distributed.StopSignal()
        if plan.resume_from is not None:
            self.state = load_state(plan.resume_from, self.training_step)
            if self.rank == 0:
                log.info(f"resuming from {plan.resume_from}")
        elif self.training_step.momentum:
            fill_queue(self.training_step)
        if self.rank == 0:
            self._open_outputs()
        dist.barrier()

    def train_step(self) -> StepMetrics:
        """Launches the next global step over all ranks."""
        state = self.state
        lr = learning_rate(self.settings, state.applied, self.plan.steps)
        momentum = key_momentum(self.settings, state.applied, self.plan.steps)
        metrics = self.training_step(state.step, lr, momentum, stop=self.signal.received)
        state.step += 1
        state.applied += metrics.applied
        state.skipped += not metrics.applied
        metrics.known |= {"step": state.step, "skipped": state.skipped}
        return metrics

    def fit(self) -> dict[str, Any]:
        """Trains to the end of the plan or a stop signal; writes metrics, evaluations and checkpoints.

        Raises:
            UserError: ``max_skipped`` consecutive steps were not finite; RUN/not_finite.jsonl lists their pairs.
        """
        settings, steps, state = self.settings, self.plan.steps, self.state
        evaluation = self.evaluate() if state.step == 0 else None
        stop = False
        launched: deque[StepMetrics] = deque()
        peak = mfu.peak(mfu.device_name(self.device), self.plan.config.dtype)
        throughput = Throughput(settings, self.training_step.model_config, peak and peak * self.world)
        with Progress("train", steps, "steps", initial=state.step, enabled=self.rank == 0) as bar:
            while state.step < steps and not stop:
                launched.append(self.train_step())
                evaluates, saves = (
                    state.step in (steps, state.step // n * n) for n in (settings.eval_every, settings.save_every)
                )
                # On CUDA, a step's metrics are read while the next step runs; all are read before an evaluation or
                # checkpoint. On a CPU, a step has ended when it is launched.
                while len(launched) > (0 if evaluates or saves or self.device.type == "cpu" else 1):
                    metrics = launched.popleft()
                    stop |= metrics.read()["stop"]
                    self._report(metrics, throughput, bar, last=stop and not launched)
                with throughput.paused():
                    if evaluates:
                        evaluation = self.evaluate()
                    if saves and state.saved < state.step:  # evaluate() has already saved a new best
                        self.save()
            for metrics in launched:  # after a signal
                self._report(metrics, throughput, bar, last=True)
            if state.saved < state.step:
                self.save()
        if self.rank == 0:
            ended = "finished" if state.step >= steps else "stopped by a signal, saved"
            skipped = f", {state.skipped} skipped as not finite" if state.skipped else ""
            print(f"{ended} at step {state.step} of {steps}{skipped}: {self.run}", file=sys.stderr, flush=True)
        return {"step": state.step, "steps": steps, "skipped": state.skipped, "evaluation": evaluation}

    def _report(self, metrics: StepMetrics, throughput: Throughput, bar: Progress, last: bool) -> None:
        """Reports a step on the bar and in the logs; raises if too many consecutive steps were not finite."""
        settings, record = self.settings, metrics.read()
        step = record["step"]
        throughput.count(metrics.totals)
        loss, top1 = CONTRAST_METRICS[settings.contrast]
        bar.update(1, f"loss {record['loss']:.3f} top-1 {record[top1]:.2f}")
        if self.rank == 0 and (last or step == self.plan.steps or step % settings.log_every == 0):
            logged = ("step", "loss", "loss_tlm", loss, top1, "lr", "grad_norm", "skipped")
            line = {name: record[name] for name in logged} | throughput.read()
            line |= {"memory_gib": mfu.peak_memory(self.device)}
            where = {"world_size": self.world, "device": mfu.device_name(self.device)}
            self.metrics.write({**{name: plain(value) for name, value in line.items()}, **where})
            events = [(f"Train/{n}", value) for n, value in line.items() if n != "step" and value is not None]
            self._write_events(step, events)
        # In fp16 a gradient can overflow with a finite loss while the loss scale adapts.
        if metrics.applied or (self.plan.config.dtype == torch.float16 and math.isfinite(record["loss"])):
            self.not_finite.clear()
        else:
            self.not_finite.append(record)
        if len(self.not_finite) == settings.max_skipped:
            self._raise_not_finite()

    def _write_events(self, step: int, events: list[tuple[str, float]]) -> None:
        """Writes to DeepSpeed's monitor (TensorBoard, CSV, W&B); the x axis is the number of pairs seen."""
        self.monitor.write_events([(name, value, step * self.plan.config.batch) for name, value in events])

    def _raise_not_finite(self) -> None:
        """Lists the pairs of the non-finite steps in a file and raises UserError to end the run."""
        file = self.run / NOT_FINITE
        first, last = (self.not_finite[i]["step"] for i in (0, -1))
        if self.rank == 0:
            lines = []
            for record in self.not_finite:
                rows, _ = self.plan.sampler.draw(record["step"] - 1)
                names = ("step", "loss_tlm", CONTRAST_METRICS[self.settings.contrast][0], "grad_norm")
                values = {name: plain(record[name]) for name in names}
                lines.append(json.dumps({**values, "pair_ids": self.plan.data.pair_ids(rows).tolist()}) + "\n")
            write_text(file, "".join(lines))
        dist.barrier()  # a failing rank ends all others
        raise UserError(
            f"steps {first} to {last} were not finite and changed nothing (max_skipped {self.settings.max_skipped}): "
            f"{file} lists their losses and pair ids. Look at these pairs, or lower learning_rate; the same command "
            "resumes from the last checkpoint"
        )

    def evaluate(self) -> dict[str, Any] | None:
        """Retrieval P@1, alignment and uniformity of the query encoder on the evaluation pairs, if there are any.

        The ranks split the sentences. A new best mean is saved as a checkpoint that is kept.
        """
        if not self.plan.eval_pairs:
            return None
        state = self.state
        with self.training_step.complete_encoder() as encoder:
            record = {"step": state.step, **evaluate_pairs(encoder, self.plan, self.device)}
        best = state.best is None or record["mean"] > state.best
        if best:
            state.best = record["mean"]
        if self.rank == 0:
            self.evaluations.write(record)
            log.info(f"step {state.step}: retrieval P@1 {record['mean']:.4f}" + (" (best)" if best else ""))
            self._write_events(state.step, [("Evaluation/retrieval_p_at_1", record["mean"])])
        if best and state.step > 0:
            self.save(best=True)
        return record

    def save(self, best: bool = False) -> None:
        """Writes a checkpoint from rank 0; call it on every rank."""
        if self.rank == 0:
            self.metrics.sync()
            self.evaluations.sync()
        save_state(self.checkpoints, self.state, self.training_step, best)

    def _open_outputs(self) -> None:
        """On rank 0, creates the run folder with settings, untouched base weights and logs."""
        with write_errors(self.run):
            self.run.mkdir(parents=True, exist_ok=True)
        data = self.plan.data
        languages = sorted({code for name in data.language_pairs for code in name.split("-")})
        read: dict[str, Any] = {"paths": self.settings.data, "pairs": data.counts, "draws": self.plan.sampling_counts}
        read |= {"languages": languages, "batch": self.plan.config.batch}
        read |= {"max_tokens": data.max_tokens, "fingerprint": data.fingerprint}
        write_yaml(self.settings, self.run / "settings.yaml", store=read)
        begins = self.plan.resume_from is None
        if begins:  # remove outputs of an earlier run that was killed before its first checkpoint
            remove_folder(self.run / "model")
        if not (self.run / "model").is_dir():
            with write_errors(self.run / "model"):
                mlm = self.training_step.engine.module.mlm
                save_base(mlm, self.settings.model, self.plan.tokenizer, self.run / "model")
        self.checkpoints.rewind(self.state.step)
        kept = -1 if begins else self.state.step
        self.metrics = JsonLines(self.run / "metrics.jsonl", kept)
        self.evaluations = JsonLines(self.run / "evaluations.jsonl", kept)

    def close(self) -> None:
        """Closes the run's resources; keeps the process group, which other code may use."""
        self.signal.restore()
        self.training_step.close()
        if self.rank == 0:
            self.metrics.close()
            self.evaluations.close()
