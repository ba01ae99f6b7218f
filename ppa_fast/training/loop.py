"""The training loop: a global step from pairs to a moved encoder, top to bottom."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ppa_fast.data.batch import Batches, PairBatch, micro_batches
from ppa_fast.data.encode import TextEncoder
from ppa_fast.data.pack import packer_for
from ppa_fast.data.sampler import Sampler
from ppa_fast.errors import UserError
from ppa_fast.evaluation.retrieval import alignment_uniformity, retrieval_scores, summarise
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import encoder_of, load_masked_lm, max_sequence, sentence_vectors
from ppa_fast.model.folder import save_base
from ppa_fast.model.momentum import MomentumEncoder
from ppa_fast.model.objective import Weights, objective
from ppa_fast.model.queue import NO_GROUP, KeyQueue
from ppa_fast.ops import library
from ppa_fast.ops.assemble import Assembled, assemble
from ppa_fast.ops.philox import torch_seed
from ppa_fast.progress import Progress
from ppa_fast.settings import Settings, write_yaml
from ppa_fast.training import distributed
from ppa_fast.training.checkpoint import Checkpoints, read_state, read_tensors
from ppa_fast.training.metrics import JsonLines
from ppa_fast.training.plan import Plan, make_plan, say
from ppa_fast.training.zero import ZeroMasters, optimizer_for

WARMUP_CHUNK = 256  # pairs encoded at once, on average, when the queue is filled


def train(settings: Settings) -> dict[str, Any]:
    """Aligns ``settings.model`` with the pairs of ``settings.data``; writes the run folder ``settings.output``.

    Call it in every rank (the deepspeed launcher does, through ``ppa_fast/train.py``), or alone for one rank.

    Returns:
        ``{"step": steps done, "steps": planned, "skipped": …, "evaluation": the last one or None}``.

    Raises:
        UserError: for anything that can be known before training, see ``training.plan``.
    """
    plan = make_plan(settings, distributed.world_size())
    if distributed.rank() == 0:
        for warning in plan.warnings:
            say(f"warning: {warning}")
    device = distributed.start()
    if distributed.rank() == 0 and (reason := library.why_not_native(device.type)):
        say(f"the operations run on PyTorch's reference implementations: {reason}")
    trainer = Trainer(plan, device)
    try:
        return trainer.fit()
    finally:
        trainer.close()


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
        self.rank, self.world = distributed.rank(), distributed.world_size()
        settings, config = plan.settings, plan.config

        mlm = load_masked_lm(settings.model)
        torch.manual_seed(torch_seed(settings.seed, 0, 0))
        model = AlignmentModel(
            mlm, settings.pooling, settings.projection_dim, tlm=settings.tlm, moco=settings.moco
        ).train()  # a loaded model comes without dropout
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.frozen = {name: initial[name] for name, p in model.named_parameters() if not p.requires_grad}
        momentum_model = copy.deepcopy(model).to(device, config.dtype)
        betas = (settings.adam_beta1, settings.adam_beta2)
        optimizer = optimizer_for(
            model.to(device), settings.weight_decay, settings.learning_rate, betas, settings.adam_epsilon
        )
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config.values)
        self.masters = ZeroMasters(self.engine)
        self.masters.set_weights(initial)
        self.momentum = MomentumEncoder(momentum_model, self.masters) if settings.moco else None

        self.sampler = Sampler(len(plan.store), config.batch, settings.seed)
        self.draws: dict[str, Any] = {
            "seed": settings.seed,
            "mask_probability": settings.mask_probability if settings.tlm else 0.0,
            "input_shuffling": settings.input_shuffling,
        }
        self.packer = packer_for(plan.store, **self.draws)
        self.pinned = device.type == "cuda"
        self.batches = Batches(self.packer, self.sampler, config.micro_batch, self.rank, self.world, pinned=self.pinned)
        self.queue = KeyQueue(settings.queue_size, config.batch, settings.projection_dim, device, config.dtype)
        self.weights = Weights(
            tlm=settings.tlm_weight if settings.tlm else 0.0,
            moco=settings.moco_weight if settings.moco else 0.0,
            temperature=settings.temperature,
        )
        self.step = self.applied = self.skipped = 0
        self.best: float | None = None  # mean P@1 of the best evaluation so far
        self.run = Path(settings.output)
        self.checkpoints = Checkpoints(self.run)
        self.signal = distributed.StopSignal()
        if plan.resume_from is not None:
            self._load(plan.resume_from)
        elif settings.moco:
            self._fill_queue()
        if self.rank == 0:
            self._open_run(mlm)
        dist.barrier()

    # One global step.

    def _assemble(self, batch: PairBatch) -> Assembled:
        special = self.plan.store.special
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

    def train_step(self) -> dict[str, Any]:
        """Runs global step ``self.step`` over all ranks; returns its metrics, equal on every rank."""
        settings, pairs = self.settings, self.plan.config.batch
        batches = [batch.to(self.device) for batch in self.batches(self.step)]
        assembled = [self._assemble(batch) for batch in batches]
        totals = batches[0].step

        tlm = moco = top1 = torch.zeros((), device=self.device)
        keys: list[Tensor] = []
        for batch, streams in zip(batches, assembled, strict=True):
            torch.manual_seed(torch_seed(settings.seed, 1 + self.step, batch.number))
            key = self.momentum.keys(streams.key) if self.momentum else torch.zeros(len(batch), 1, device=self.device)
            tlm_sum, query = self.engine(streams)
            losses = objective(tlm_sum, query, key, batch.groups, self.queue, self.weights, totals.masked, pairs)
            # DeepSpeed divides by the accumulation steps and averages over the ranks; the total is a part of a sum.
            self.engine.backward(losses.total * (self.plan.config.accumulation * self.world))
            if batch is not batches[-1]:
                self.engine.step()
            tlm, moco, top1 = tlm + losses.tlm, moco + losses.moco, top1 + losses.top1
            keys.append(key)
        step_keys = torch.cat(keys)

        finite = torch.isfinite(tlm) & torch.isfinite(moco) & torch.isfinite(step_keys).all()
        tokens = sum(len(s.tokens) for a in assembled for s in self._streams(a))
        tlm_sum, moco_sum, hits, read, broken, stop = distributed.sum_over_ranks(
            [tlm, moco, top1, tokens, ~finite, self.signal.noted], self.device
        )
        lr = learning_rate(settings, self.applied, self.plan.steps)
        applied, norm = self.masters.step(lr, skip=broken > 0)
        if applied:
            self.applied += 1
            if self.momentum:
                self.momentum.update(settings.momentum)
                groups, positions = (torch.cat([getattr(b, name) for b in batches]) for name in ("groups", "positions"))
                counts = totals.pairs_by_rank(self.world)
                mine = (step_keys, groups, positions)
                self.queue.enqueue(*(distributed.concatenate_over_ranks(each, counts) for each in mine))
                self.queue.commit(pairs)
        else:
            self.skipped += 1
        self.step += 1
        loss_tlm, loss_moco = tlm_sum / max(totals.masked, 1), moco_sum / pairs
        return {
            "step": self.step,
            "loss": self.weights.tlm * loss_tlm + self.weights.moco * loss_moco,
            "loss_tlm": loss_tlm,
            "loss_moco": loss_moco,
            "queue_top1": hits / pairs,
            "lr": lr,
            "grad_norm": norm,
            "skipped": self.skipped,
            "tokens": int(read),
            "stop": stop > 0,
        }

    def _streams(self, assembled: Assembled) -> Iterator[Any]:
        """The streams that go through an encoder."""
        if self.settings.tlm:
            yield assembled.tlm
        if self.settings.moco:
            yield assembled.query
            yield assembled.key

    # The run around it.

    def fit(self) -> dict[str, Any]:
        """Steps to the end of the plan or to a stop signal, with metrics, evaluations and checkpoints on the way."""
        settings, steps = self.settings, self.plan.steps
        evaluation = None
        if self.step == 0:
            evaluation = self.evaluate()
        clock, pairs_seen, tokens_seen = time.monotonic(), 0, 0
        with Progress("train", steps, "steps", initial=self.step, enabled=self.rank == 0) as bar:
            while self.step < steps:
                metrics = self.train_step()
                stop = metrics.pop("stop")
                pairs_seen += self.plan.config.batch
                tokens_seen += metrics.pop("tokens")
                last = stop or self.step == steps
                bar.update(1, f"loss {metrics['loss']:.3f} top-1 {metrics['queue_top1']:.2f}")
                if last or self.step % settings.log_every == 0:
                    seconds = max(time.monotonic() - clock, 1e-9)
                    rates = {"pairs_per_s": pairs_seen / seconds, "tokens_per_s": tokens_seen / seconds}
                    self._log({**metrics, **rates, "world_size": self.world})
                    clock, pairs_seen, tokens_seen = time.monotonic(), 0, 0
                pause = time.monotonic()
                if self.step == steps or self.step % settings.eval_every == 0:
                    evaluation = self.evaluate()
                if last or self.step % settings.save_every == 0:
                    self._save()
                clock += time.monotonic() - pause
                if stop:
                    break
        if self.rank == 0:
            ended = "finished" if self.step >= steps else "stopped by a signal, saved"
            skipped = f", {self.skipped} skipped as not finite" if self.skipped else ""
            say(f"{ended} at step {self.step} of {steps}{skipped}: {self.run}")
        return {"step": self.step, "steps": steps, "skipped": self.skipped, "evaluation": evaluation}

    def _log(self, record: dict[str, Any]) -> None:
        if self.rank == 0:
            self.metrics.write({name: _plain(value) for name, value in record.items()})
            samples = self.step * self.plan.config.batch
            scalars = [(f"Train/{n}", v, samples) for n, v in record.items() if n not in ("step", "world_size")]
            self.engine.monitor.write_events(scalars)

    def evaluate(self) -> dict[str, Any] | None:
        """Retrieval P@1, alignment and uniformity of the query encoder on the evaluation pairs, if there are any.

        The ranks share the sentences. The best mean so far is saved and kept.
        """
        if not self.plan.eval_pairs:
            return None
        settings, store = self.settings, self.plan.store
        encoder = encoder_of(self.engine.module.mlm)
        longest = min(store.max_tokens, max_sequence(self.engine.module.mlm.config) - 2)
        encode = TextEncoder(self.plan.tokenizer, longest)
        pairs: dict[str, dict[str, Any]] = {}
        for source, *sides in self.plan.eval_pairs:
            vectors = []
            for texts in sides:
                rows = encode(texts)[self.rank :: self.world]
                mine = sentence_vectors(encoder, rows, store.special, settings.pooling, device=self.device)
                everyone: list[Tensor] = [mine] * self.world
                dist.all_gather_object(everyone, mine)
                whole = torch.empty(len(texts), mine.shape[1])
                for r, part in enumerate(everyone):
                    whole[r :: self.world] = part
                vectors.append(whole)
            a_to_b, b_to_a = retrieval_scores(*vectors)
            alignment, uniformity = alignment_uniformity(*vectors)
            scores = {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": len(sides[0])}
            pairs[source.name] = {**scores, "alignment": alignment, "uniformity": uniformity}
        record = {"step": self.step, **summarise(pairs)}
        best = self.best is None or record["mean"] > self.best
        if best:
            self.best = record["mean"]
        if self.rank == 0:
            self.evaluations.write(record)
            say(f"step {self.step}: retrieval P@1 {record['mean']:.4f}" + (" (best)" if best else ""))
            samples = self.step * self.plan.config.batch
            self.engine.monitor.write_events([("Evaluation/retrieval_p_at_1", record["mean"], samples)])
        if best and self.step > 0:
            self._save(best=True)
        return record

    def _fill_queue(self) -> None:
        """Fills the queue before the first step with the key sides of the last min(K, pairs) pairs of epoch 0's order,
        or with random unit vectors."""
        assert self.momentum is not None
        settings, pairs = self.settings, self.sampler.pairs
        count = min(settings.queue_size, pairs)
        if settings.queue_warmup == "random":
            generator = torch.Generator().manual_seed(torch_seed(settings.seed, 0, 1))
            vectors = torch.randn(settings.queue_size, settings.projection_dim, generator=generator)
            vectors = torch.nn.functional.normalize(vectors, dim=1).to(self.device)
            groups = torch.full((settings.queue_size,), NO_GROUP, dtype=torch.int64, device=self.device)
            return self.queue.fill(vectors, groups)
        rows, epochs = self.sampler.at(np.arange(pairs - count, pairs, dtype=np.int64))
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
        self.run.mkdir(parents=True, exist_ok=True)
        manifest = self.plan.store.manifest
        pairs = {name: counts["pairs"] for name, counts in manifest["language_pairs"].items()}
        languages = sorted({code for name in pairs for code in name.split("-")})
        read = {"path": self.settings.data, "pairs": pairs, "languages": languages, "batch": self.plan.config.batch}
        read |= {"max_tokens": self.plan.store.max_tokens, "fingerprint": self.plan.store.fingerprint}
        write_yaml(self.settings, self.run / "settings.yaml", read)
        begins = self.plan.resume_from is None
        if begins:  # what a run left that was killed before its first checkpoint is not of this one
            shutil.rmtree(self.run / "model", ignore_errors=True)
        if not (self.run / "model").is_dir():
            save_base(mlm, self.settings.model, self.plan.tokenizer, self.run / "model")
        self.checkpoints.rewind(self.step)
        kept = -1 if begins else self.step
        self.metrics = JsonLines(self.run / "metrics.jsonl", kept)
        self.evaluations = JsonLines(self.run / "evaluations.jsonl", kept)

    def _save(self, best: bool = False) -> None:
        """A checkpoint of all that the next step depends on; every rank calls it, rank 0 writes."""
        adam = {name: dict(self.masters.gather(self.masters.moments(name))) for name in ("exp_avg", "exp_avg_sq")}
        tensors = {"query": {**self.frozen, **dict(self.masters.gather(self.masters.tensors))}, **adam}
        if self.momentum:
            keys, groups = self.queue.content()
            tensors["momentum"] = dict(self.masters.gather(self.momentum.tensors))
            tensors["queue"] = {"keys": keys, "groups": groups}
        if self.rank == 0:
            state = {
                "step": self.step,
                "steps": self.plan.steps,
                "applied": self.applied,
                "skipped": self.skipped,
                "best": self.best,
                "cursor": self.queue.cursor,
                "batch": self.plan.config.batch,
                "store": self.plan.store.fingerprint,
                "world_size": self.world,
                "settings": dataclasses.asdict(self.settings),
            }
            self.checkpoints.save(self.step, state, tensors)
            if best:
                self.checkpoints.mark_best(self.step)
            self.checkpoints.prune(self.settings.keep)
        dist.barrier()

    def _load(self, path: Path) -> None:
        state, query = read_state(path), read_tensors(path, "query")
        expected = set(self.masters.parameters) | set(self.frozen)
        if set(query) != expected:
            odd = sorted(set(query) ^ expected)[0]
            raise UserError(f"{path / 'query.safetensors'}: its weights are not those of {self.settings.model}: {odd}")
        self.step, self.applied, self.skipped = state["step"], state["applied"], state["skipped"]
        self.best = state["best"]
        self.masters.set_weights(query)
        self.masters.set_step(self.applied)
        for name in ("exp_avg", "exp_avg_sq"):
            self.masters.scatter(self.masters.moments(name), read_tensors(path, name))
        if self.momentum:
            self.masters.scatter(self.momentum.tensors, read_tensors(path, "momentum"))
            self.momentum.refresh()
            queue = read_tensors(path, "queue")
            self.queue.fill(queue["keys"].to(self.device), queue["groups"].to(self.device), state["cursor"])
        if self.rank == 0:
            say(f"going on from {path}")

    def close(self) -> None:
        """Ends what the run holds open; the process group stays, other code may use it."""
        self.signal.restore()
        if self.rank == 0 and hasattr(self, "metrics"):
            self.metrics.close()
            self.evaluations.close()
        self.engine.destroy()


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
