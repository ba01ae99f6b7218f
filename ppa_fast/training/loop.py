"""The training loop: a global step from pairs to a moved encoder, top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppa_fast.data.batch import Batches, PairBatch, micro_batches
from ppa_fast.data.stream import Stream
from ppa_fast.errors import UserError
from ppa_fast.files import alone, remove_folder, write_text, writing
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import checkpoint_activations, encoder_of, freeze_layers, load_masked_lm
from ppa_fast.model.folder import save_base
from ppa_fast.model.momentum import MomentumEncoder
from ppa_fast.model.objective import Weights, objective
from ppa_fast.model.packed import compile_layers
from ppa_fast.model.queue import NO_GROUP, KeyQueue
from ppa_fast.ops import library
from ppa_fast.ops.assemble import Assembled, assemble
from ppa_fast.ops.philox import torch_seed
from ppa_fast.progress import Progress, note
from ppa_fast.settings import Settings, write_yaml
from ppa_fast.training import distributed, utilisation
from ppa_fast.training.checkpoint import Checkpoints, read_state, read_tensors
from ppa_fast.training.evaluation import evaluate_pairs
from ppa_fast.training.feed import Feed
from ppa_fast.training.figures import Figures, LateSums, Rates
from ppa_fast.training.metrics import JsonLines
from ppa_fast.training.optimizer import optimizer_for
from ppa_fast.training.plan import NOT_FINITE, Plan, make_plan, sampling_table
from ppa_fast.training.watch import watched
from ppa_fast.training.zero import ZeroMasters

LOGGED = ("step", "loss", "loss_tlm", "loss_moco", "queue_top1", "lr", "grad_norm", "skipped")  # and the rates
WARMUP_CHUNK = 256  # pairs encoded at once, on average, when the queue is filled


def train(settings: Settings) -> dict[str, Any]:
    """Aligns ``settings.model`` with the pairs of ``settings.data``; writes the run folder ``settings.output``.

    Call it in every rank (the deepspeed launcher does, through ``ppa_fast/train.py``), or alone for one rank.

    Returns:
        ``{"step": steps done, "steps": planned, "skipped": …, "evaluation": the last one or None}``.

    Raises:
        UserError: for anything that can be known before training, see ``training.plan``; where a file of the run cannot
            be read or written; when no step is finite any more. Where another rank fails or is lost, this process
            exits instead, see ``training.watch``.
    """
    with ExitStack() as ends, watched():
        plan = make_plan(settings, distributed.world_size())
        if distributed.rank() == 0:
            ends.enter_context(alone(Path(settings.output), "another training run"))
            if plan.draws:  # of text they are not known
                note(sampling_table(plan.data.counts, plan.draws))
            for warning in plan.warnings:
                note(f"warning: {warning}")
        device = ends.enter_context(distributed.started())
        if distributed.rank() == 0 and (reason := library.why_not_native(device.type)):
            note(f"the operations run on PyTorch's reference implementations: {reason}")
        trainer = Trainer(plan, device)
        ends.callback(trainer.close)
        return trainer.fit()


def learning_rate(settings: Settings, applied: int, steps: int) -> float:
    """The rate of the next step after ``applied`` steps of ``steps``: a linear rise over the first ``warmup`` share to
    the peak, then a linear decay that would reach 0 one step after the last, or a constant."""
    rising = max(1, round(settings.warmup * steps))
    if applied < rising:
        return settings.learning_rate * (applied + 1) / rising
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * max(0, steps - applied) / max(1, steps - rising + 1)


class Trainer:
    """The state of a run in one rank: the engine, the momentum encoder, the queue and the counters."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        import deepspeed

        self.plan, self.settings, self.device = plan, plan.settings, device
        self.device_name = utilisation.device_name(device)
        self.rank, self.world = distributed.rank(), distributed.world_size()
        settings, config = plan.settings, plan.config

        mlm = load_masked_lm(settings.model)
        self.model_config = mlm.config
        freeze_layers(mlm, settings.freeze_layers)
        if settings.activation_checkpointing:
            checkpoint_activations(mlm)
        torch.manual_seed(torch_seed(settings.seed, 0, 0))
        model = AlignmentModel(
            mlm, settings.pooling, settings.projection_dim, tlm=settings.tlm, moco=settings.moco
        ).train()  # a loaded model comes without dropout
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.frozen = {name: initial[name] for name, p in model.named_parameters() if not p.requires_grad}
        if settings.moco or config.stage == 3:  # whole on every rank, which at stage 3 the query encoder is not
            self.whole_model = copy.deepcopy(model).to(device, config.dtype)
            if settings.compile:
                compile_layers(encoder_of(self.whole_model.mlm))
        if settings.compile:
            compile_layers(encoder_of(mlm))
        betas = (settings.adam_beta1, settings.adam_beta2)
        optimizer = optimizer_for(
            model.to(device), settings.weight_decay, settings.learning_rate, betas, settings.adam_epsilon
        )
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config.values)
        self.monitor = self.engine.monitor
        self.monitor.enabled = False  # for the engine, which would wait for each step's loss to write it once more
        self.masters = ZeroMasters(self.engine)
        self.masters.set_weights(initial)
        if settings.anchor:
            self.masters.anchor(initial, settings.anchor)
        self.momentum = MomentumEncoder(self.whole_model, self.masters) if settings.moco else None

        self.sampler = plan.sampler
        self.draws: dict[str, Any] = {
            "seed": settings.seed,
            "mask_probability": settings.mask_probability if settings.tlm else 0.0,
            "input_shuffling": settings.input_shuffling,
        }
        self.stream = plan.data if isinstance(plan.data, Stream) else None
        self.packer = plan.data.packer(**self.draws)
        self.pinned = device.type == "cuda"
        batches = Batches(self.packer, self.sampler, config.micro_batch, self.rank, self.world, pinned=self.pinned)
        self.feed = Feed(batches, self._assemble, device)
        self.queue = KeyQueue(settings.queue_size, config.batch, settings.projection_dim, device, config.dtype)
        self.weights = Weights(
            tlm=settings.tlm_weight if settings.tlm else 0.0,
            moco=settings.moco_weight if settings.moco else 0.0,
            temperature=settings.temperature,
        )
        self.step = self.applied = self.skipped = 0
        self.not_finite: list[dict[str, Any]] = []  # what the last steps say, if they were not
        self.saved = 0  # the step of the latest checkpoint
        self.best: float | None = None  # mean P@1 of the best evaluation so far
        self.run = Path(settings.output)
        self.checkpoints = Checkpoints(self.run)
        self.signal = distributed.StopSignal()
        if plan.resume_from is not None:
            self._load(plan.resume_from)
        self._start_stream()
        if plan.resume_from is None and settings.moco:
            self._fill_queue()
        if self.rank == 0:
            self._open_run(mlm)
        dist.barrier()

    def _start_stream(self) -> None:
        """Where the data is text: rank 0 has the shards made from this step on; the others may look for them."""
        if self.stream and self.rank == 0:
            note("the data is text: its first shard is being made")
            self.stream.spool.start(
                self.stream.maker, self.step * self.plan.config.batch, anew=self.plan.resume_from is None
            )
        if self.stream:
            dist.barrier()

    # One global step.

    def _assemble(self, batch: PairBatch) -> Assembled:
        special = self.plan.data.special
        return assemble(
            batch.a_tokens,
            batch.a_offsets,
            batch.b_tokens,
            batch.b_offsets,
            batch.pair_ids,
            batch.epochs,
            batch.layout,
            cls=special.cls,
            sep=special.sep,
            mask=special.mask,
            vocab_size=special.vocab_size,
            **self.draws,
        )

    def train_step(self) -> Figures:
        """Launches global step ``self.step`` over all ranks. Up to DeepSpeed's optimizer step, which asks for the
        gradient's norm, the host waits for nothing."""
        settings, pairs = self.settings, self.plan.config.batch
        batches = self.feed(self.step)
        totals = batches[0][0].step

        tlm = moco = top1 = torch.zeros((), device=self.device)
        keys: list[Tensor] = []
        for batch, streams in batches:
            torch.manual_seed(torch_seed(settings.seed, 1 + self.step, batch.number))
            key = self.momentum.keys(streams.key) if self.momentum else torch.zeros(len(batch), 1, device=self.device)
            tlm_sum, query = self.engine(streams)
            losses = objective(tlm_sum, query, key, batch.groups, self.queue, self.weights, totals.masked, pairs)
            # DeepSpeed divides by the accumulation steps and averages over the ranks; the total is a part of a sum.
            self.masters.backward(losses.total * (self.plan.config.accumulation * self.world))
            if len(keys) < len(batches) - 1:
                self.engine.step()
            tlm, moco, top1 = tlm + losses.tlm, moco + losses.moco, top1 + losses.top1
            keys.append(key)
        sums = LateSums({"tlm": tlm, "moco": moco, "top1": top1, "stop": self.signal.noted}, self.device)

        lr = learning_rate(settings, self.applied, self.plan.steps)
        applied, norm = self.masters.step(lr)
        if applied:
            self.applied += 1
            if self.momentum:
                self.momentum.update(settings.momentum)
                groups, positions = (torch.cat([getattr(b, n) for b, _ in batches]) for n in ("groups", "positions"))
                counts = totals.pairs_by_rank(self.world)
                mine = (torch.cat(keys), groups, positions)
                self.queue.enqueue(*(distributed.concatenate_over_ranks(each, counts) for each in mine))
                self.queue.commit(pairs)
        else:
            self.skipped += 1
        self.step += 1
        # Special tokens: three of a TLM sequence; two of each of a pair's sentences.
        tlm_tokens, moco_tokens = (
            settings.tlm * (totals.text_tokens + 3 * pairs),
            settings.moco * (totals.text_tokens + 4 * pairs),
        )
        flop = utilisation.step_flop(self.model_config, tlm_tokens, moco_tokens, totals.masked, settings.freeze_layers)
        known = {"step": self.step, "lr": lr, "grad_norm": norm, "skipped": self.skipped, "applied": applied}
        known |= {"tokens": tlm_tokens + moco_tokens, "flop": flop}
        return Figures(sums, self.weights, totals.masked, pairs, **known)

    # The run around it.

    def fit(self) -> dict[str, Any]:
        """Steps to the end of the plan or to a stop signal, with metrics, evaluations and checkpoints on the way.

        Raises:
            UserError: ``max_skipped`` steps in a row were not finite; RUN/not_finite.jsonl tells which pairs they had.
        """
        settings, steps = self.settings, self.plan.steps
        evaluation = self.evaluate() if self.step == 0 else None
        stop = False
        launched: deque[Figures] = deque()
        peak = utilisation.peak(self.device_name, self.plan.config.dtype)
        rates = Rates(peak and peak * self.world)
        with Progress("train", steps, "steps", initial=self.step, enabled=self.rank == 0) as bar:
            while self.step < steps and not stop:
                launched.append(self.train_step())
                evaluates, saves = (
                    self.step in (steps, self.step // n * n) for n in (settings.eval_every, settings.save_every)
                )
                # A step's figures are read while the next one runs, but all of them before anything is called saved.
                while len(launched) > (0 if evaluates or saves else 1):
                    record = launched.popleft().read()
                    stop |= record["stop"]
                    self._report(record, rates, bar, last=stop and not launched)
                with rates.paused():
                    if evaluates:
                        evaluation = self.evaluate()
                    if saves and self.saved < self.step:  # the best one is saved already
                        self._save()
            for figures in launched:  # after a signal
                self._report(figures.read(), rates, bar, last=True)
            if self.saved < self.step:
                self._save()
        if self.rank == 0:
            ended = "finished" if self.step >= steps else "stopped by a signal, saved"
            skipped = f", {self.skipped} skipped as not finite" if self.skipped else ""
            print(f"{ended} at step {self.step} of {steps}{skipped}: {self.run}", file=sys.stderr, flush=True)
        return {"step": self.step, "steps": steps, "skipped": self.skipped, "evaluation": evaluation}

    def _report(self, record: dict[str, Any], rates: Rates, bar: Progress, last: bool) -> None:
        """Says what a step did: on the bar, in the logs, and by an error if too many in a row were not finite."""
        settings, step = self.settings, record["step"]
        rates.count(self.plan.config.batch, record["tokens"], record["flop"])
        bar.update(1, f"loss {record['loss']:.3f} top-1 {record['queue_top1']:.2f}")
        if self.rank == 0 and (last or step == self.plan.steps or step % settings.log_every == 0):
            line = {name: record[name] for name in LOGGED} | rates.read()
            line |= {"memory_gib": utilisation.peak_memory(self.device)}
            where = {"world_size": self.world, "device": self.device_name}
            self.metrics.write({**{name: _plain(value) for name, value in line.items()}, **where})
            samples = step * self.plan.config.batch
            self.monitor.write_events(
                [
                    (f"Train/{name}", value, samples)
                    for name, value in line.items()
                    if name != "step" and value is not None
                ]
            )
        # In fp16 a gradient may overflow where the loss does not: the loss scale is being found.
        if record["applied"] or (self.plan.config.dtype == torch.float16 and math.isfinite(record["loss"])):
            self.not_finite.clear()
        else:
            self.not_finite.append(record)
        if len(self.not_finite) == settings.max_skipped:
            self._give_up()

    def _give_up(self) -> None:
        """Ends a run whose steps no longer do anything, with the pairs of those steps in a file."""
        file = self.run / NOT_FINITE
        first, last = (self.not_finite[i]["step"] for i in (0, -1))
        if self.rank == 0:
            lines = []
            for record in self.not_finite:
                rows, _ = self.sampler.draw(record["step"] - 1)
                figures = {name: _plain(record[name]) for name in ("step", "loss_tlm", "loss_moco", "grad_norm")}
                lines.append(json.dumps({**figures, "pair_ids": self.plan.data.pair_ids(rows).tolist()}) + "\n")
            write_text(file, "".join(lines))
        dist.barrier()  # the first rank that fails ends all others
        raise UserError(
            f"steps {first} to {last} were not finite and changed nothing (max_skipped {self.settings.max_skipped}): "
            f"{file} lists their losses and pair ids. Look at these pairs, or lower learning_rate; the same command "
            "goes on from the last checkpoint"
        )

    def evaluate(self) -> dict[str, Any] | None:
        """Retrieval P@1, alignment and uniformity of the query encoder on the evaluation pairs, if there are any.

        The ranks share the sentences. The best mean so far is saved and kept.
        """
        if not self.plan.eval_pairs:
            return None
        with self._whole_encoder() as encoder:
            record = {"step": self.step, **evaluate_pairs(encoder, self.plan, self.device)}
        best = self.best is None or record["mean"] > self.best
        if best:
            self.best = record["mean"]
        if self.rank == 0:
            self.evaluations.write(record)
            note(f"step {self.step}: retrieval P@1 {record['mean']:.4f}" + (" (best)" if best else ""))
            samples = self.step * self.plan.config.batch
            self.monitor.write_events([("Evaluation/retrieval_p_at_1", record["mean"], samples)])
        if best and self.step > 0:
            self._save(best=True)
        return record

    @contextmanager
    def _whole_encoder(self) -> Iterator[nn.Module]:
        """The query encoder, as this rank can run it alone.

        Under ZeRO-3 its forward is collective, but the ranks have unequal numbers of batches: there the whole model,
        which the momentum encoder works with, takes its weights.
        """
        if self.masters.stage < 3:
            yield encoder_of(self.engine.module.mlm)
            return
        weights = [tensor.to(self.plan.config.dtype) for tensor in self.masters.tensors]
        self.masters.copy_to(weights, dict(self.whole_model.named_parameters()))
        yield encoder_of(self.whole_model.mlm)
        if self.momentum:
            self.momentum.refresh()

    def _fill_queue(self) -> None:
        """Fills the queue before the first step with the key sides of the last min(K, draws) draws of epoch 0 (of text:
        of its first shard), or with random unit vectors."""
        assert self.momentum is not None
        settings, draws = self.settings, self.sampler.head()
        count = min(settings.queue_size, draws)
        if settings.queue_warmup == "random":
            generator = torch.Generator().manual_seed(torch_seed(settings.seed, 0, 1))
            vectors = torch.randn(settings.queue_size, settings.projection_dim, generator=generator)
            vectors = torch.nn.functional.normalize(vectors, dim=1).to(self.device)
            groups = torch.full((settings.queue_size,), NO_GROUP, dtype=torch.int64, device=self.device)
            return self.queue.fill(vectors, groups)
        rows, epochs = self.sampler.at(np.arange(draws - count, draws, dtype=np.int64))
        parts = -(-count // WARMUP_CHUNK)
        mine = []
        with Progress("fill the queue", count, "keys", enabled=self.rank == 0) as bar:
            for batch in micro_batches(self.packer, rows, epochs, parts, self.rank, self.world, self.pinned):
                chunk_keys = self.momentum.keys(self._assemble(batch.to(self.device)).key)
                # Copies: a view would be sent with the whole buffer.
                mine.append((batch.positions.clone(), chunk_keys.cpu(), batch.groups.clone()))
                bar.update(sum(batch.step.pairs[batch.number : batch.number + self.world]))
        everyone: list[Any] = [mine] * self.world
        dist.all_gather_object(everyone, mine)
        keys, groups = torch.empty(count, settings.projection_dim), torch.empty(count, dtype=torch.int64)
        for part in everyone:
            for at, chunk_keys, chunk_groups in part:
                keys[at], groups[at] = chunk_keys, chunk_groups
        return self.queue.fill(keys.to(self.device), groups.to(self.device))

    # Saving and going on.

    def _open_run(self, mlm: Any) -> None:
        """Rank 0: the folder with its settings, the base model's untouched parts, and the logs."""
        with writing(self.run):
            self.run.mkdir(parents=True, exist_ok=True)
        pairs = self.plan.data.counts
        languages = sorted({code for name in self.plan.data.language_pairs for code in name.split("-")})
        read: dict[str, Any] = {"paths": self.settings.data, "pairs": pairs, "draws": self.plan.draws}
        read |= {"languages": languages, "batch": self.plan.config.batch}
        read |= {"max_tokens": self.plan.data.max_tokens, "fingerprint": self.plan.data.fingerprint}
        write_yaml(self.settings, self.run / "settings.yaml", read)
        begins = self.plan.resume_from is None
        if begins:  # what a run left that was killed before its first checkpoint is not of this one
            remove_folder(self.run / "model")
        if not (self.run / "model").is_dir():
            with writing(self.run / "model"):
                save_base(mlm, self.settings.model, self.plan.tokenizer, self.run / "model")
        self.checkpoints.rewind(self.step)
        kept = -1 if begins else self.step
        self.metrics = JsonLines(self.run / "metrics.jsonl", kept)
        self.evaluations = JsonLines(self.run / "evaluations.jsonl", kept)

    def _save(self, best: bool = False) -> None:
        """A checkpoint of all that the next step depends on; every rank calls it, rank 0 writes."""
        tensors = {"query": {**self.frozen, **self._gather(self.masters.tensors)}}
        for name in ("exp_avg", "exp_avg_sq"):
            tensors[name] = self._gather(self.masters.moments(name))
        if self.momentum:
            keys, groups = self.queue.content()
            tensors["momentum"] = self._gather(self.momentum.tensors)
            tensors["queue"] = {"keys": keys, "groups": groups}
        if self.rank == 0:
            state = {
                "step": self.step,
                "steps": self.plan.steps,
                "applied": self.applied,
                "skipped": self.skipped,
                "best": self.best,
                "cursor": self.queue.cursor,
                "loss_scaler": self.masters.loss_scaler,
                "batch": self.plan.config.batch,
                "store": self.plan.data.fingerprint,
                "world_size": self.world,
                "settings": dataclasses.asdict(self.settings),
            }
            self.metrics.sync()
            self.evaluations.sync()
            self.checkpoints.save(self.step, state, tensors, best)
            self.checkpoints.prune(self.settings.keep)
        self.saved = self.step
        dist.barrier()

    def _gather(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name on rank 0, on its CPU; every rank takes part in bringing them there."""
        return {name: whole.cpu() for name, whole in self.masters.gather(tensors) if self.rank == 0}

    def _load(self, path: Path) -> None:
        state, query = read_state(path), read_tensors(path, "query")
        found = {name: tensor.shape for name, tensor in query.items()}
        expected = {**self.masters.shapes, **{name: tensor.shape for name, tensor in self.frozen.items()}}
        if found != expected:
            odd, _ = min(found.items() ^ expected.items())
            raise UserError(f"{path / 'query.safetensors'}: its weights are not those of {self.settings.model}: {odd}")
        self.step, self.applied, self.skipped = state["step"], state["applied"], state["skipped"]
        self.saved, self.best = self.step, state["best"]
        self.masters.set_weights(query)
        self.masters.set_step(self.applied)
        self.masters.loss_scaler = state["loss_scaler"]
        for name in ("exp_avg", "exp_avg_sq"):
            self.masters.scatter(self.masters.moments(name), read_tensors(path, name))
        if self.momentum:
            self.masters.scatter(self.momentum.tensors, read_tensors(path, "momentum"))
            self.momentum.refresh()
            queue = read_tensors(path, "queue")
            self.queue.fill(queue["keys"].to(self.device), queue["groups"].to(self.device), state["cursor"])
        if self.rank == 0:
            note(f"going on from {path}")

    def close(self) -> None:
        """Ends what the run holds open; the process group stays, other code may use it."""
        self.signal.restore()
        if self.stream:
            self.stream.spool.close()
        self.feed.close()
        if self.rank == 0:
            self.metrics.close()
            self.evaluations.close()
        self.engine.destroy()


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
