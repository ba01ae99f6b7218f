"""The implementations of the global step that step.py compares, from the naive one to the product's own.

All start from the same weights and queue, read the same pairs, and compute the same results.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppa_fast.data.loading.batching import Batches, PairBatch
from ppa_fast.data.loading.packing import packer_for
from ppa_fast.data.loading.sampler import Sampler
from ppa_fast.data.store.store import Store
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import encoder_of, lm_decoder, lm_transform, load_masked_lm
from ppa_fast.model.momentum import MomentumEncoder, WorkingCopy
from ppa_fast.model.objective import Weights, moco_loss, objective
from ppa_fast.model.packed import compile_layers, fuse_projections, join, packed_hidden, pool_packed
from ppa_fast.model.queue import NO_GROUP, KeyQueue
from ppa_fast.ops.assemble import AssembledBatch, PackedSequences, assemble
from ppa_fast.ops.philox import torch_seed
from ppa_fast.training.optimizer import optimizer_for

MOMENTUM, TEMPERATURE, LEARNING_RATE, CLIP, DIM, SEED = 0.999, 0.05, 3e-5, 1.0, 128, 0
DRAWS: dict[str, Any] = {"seed": SEED, "mask_probability": 0.15, "input_shuffling": True}
PARTS = (
    "assemble",
    "key forward",
    "query forward",
    "LM head",
    "contrast",
    "backward",
    "optimizer",
    "EMA and queue",
)

Figures = Mapping[str, Tensor | float]
"""The results of a step: ``loss_tlm``, ``loss_moco``, ``grad_norm``."""


@dataclass(frozen=True)
class Job:
    """The training job of every step: the model of ``folder``/model on the pairs of ``folder``/store, ``pairs`` per
    step. ``dtype``: of the working weights in the packed steps; ``queue``: K."""

    folder: Path
    pairs: int
    queue: int
    device: torch.device
    dtype: torch.dtype


class Clock:
    """Measures the parts of a step: :meth:`to` starts the next part. On CUDA a part is the time on the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def to(self, part: str) -> None:
        """Starts ``part``; "" if the following work belongs to no part."""
        mark: Any = torch.cuda.Event(enable_timing=True) if self._cuda else perf_counter()
        if self._cuda:
            mark.record()
        self._marks.append((part, mark))

    def read(self) -> dict[str, float]:
        """Returns the seconds by part since the last reading."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if part:
                seconds[part] += begin.elapsed_time(end) / 1e3 if self._cuda else end - begin
        self._marks.clear()
        return seconds


class Source:
    """The packed sequences of a global step, sampled as by the trainer."""

    def __init__(self, job: Job) -> None:
        store = Store.open(job.folder / "store")
        self._special, self._device = store.special, job.device
        sampler = Sampler(len(store), job.pairs, SEED)
        self._batches = Batches(packer_for(store, **DRAWS), sampler, job.pairs, 0, 1, pinned=job.device.type == "cuda")

    def __call__(self, step: int) -> tuple[PairBatch, AssembledBatch]:
        batch = self._batches(step)[0].to(self._device)
        flat = (batch.a_tokens, batch.a_offsets, batch.b_tokens, batch.b_offsets)
        special = self._special
        names = {"cls": special.cls, "sep": special.sep, "mask": special.mask, "vocab_size": special.vocab_size}
        return batch, assemble(*flat, batch.pair_ids, batch.epochs, batch.layout, **names, **DRAWS)


def new_model(job: Job) -> AlignmentModel:
    """fp32, without dropout, with the initial weights of the trainer."""
    mlm = load_masked_lm(job.folder / "model")
    torch.manual_seed(torch_seed(SEED, 0, 0))
    return AlignmentModel(mlm, "cls", DIM).train().to(job.device)


def first_keys(job: Job) -> tuple[Tensor, Tensor]:
    """The initial queue, vectors [K, D] and groups [K]: the trainer's ``queue_warmup: random``."""
    generator = torch.Generator().manual_seed(torch_seed(SEED, 0, 1))
    vectors = F.normalize(torch.randn(job.queue, DIM, generator=generator), dim=1).to(job.device)
    return vectors, torch.full((job.queue,), NO_GROUP, dtype=torch.int64, device=job.device)


def set_dropout(model: nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


class Step:
    """An implementation of a global step; a call runs the next step."""

    compiled = False  # its floating-point operations cannot be counted when compiled

    def __init__(self, job: Job) -> None:
        self.job, self.clock, self.source, self.number = job, Clock(job.device), Source(job), 0

    def __call__(self) -> Figures:
        raise NotImplementedError

    def at(self, number: int) -> Figures:
        """Runs the step on the pairs of step ``number`` without changing which step is next."""
        following, self.number = self.number, number
        figures = self()
        self.number = following
        return figures

    def set_dropout(self, share: float) -> None:
        raise NotImplementedError


# --- plain -----------------------------------------------------------------------------------------------------------


class PlainQueue:
    """MoCo's queue: K keys, of which the oldest are overwritten; K must be a multiple of the batch size."""

    def __init__(self, job: Job, dtype: torch.dtype) -> None:
        vectors, self.groups = first_keys(job)
        self.vectors, self._next = vectors.to(dtype), 0

    def loss(self, query: Tensor, keys: Tensor, groups: Tensor) -> Tensor:
        """The sum of InfoNCE over the rows: the N × (1 + K) logits and their cross-entropy."""
        positive = (query * keys).sum(1, keepdim=True)
        negatives = query.to(self.vectors.dtype) @ self.vectors.T
        negatives = negatives.float().masked_fill(self.groups == groups[:, None], -torch.inf)
        logits = torch.cat([positive, negatives], dim=1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros_like(groups), reduction="sum")

    def push(self, keys: Tensor, groups: Tensor) -> None:
        rows = slice(self._next, self._next + len(keys))
        self.vectors[rows], self.groups[rows] = keys.to(self.vectors.dtype), groups
        self._next = rows.stop % len(self.groups)


def padded(stream: PackedSequences, flat: Tensor, fill: int) -> Tensor:
    """Returns a value per token, [T], as [S, L]."""
    rows = flat.new_full((len(stream.lengths), int(stream.lengths.max())), fill)
    rows[stream.sequence, stream.positions] = flat
    return rows


class Plain(Step):
    """Padded batches, the LM head on all tokens, ``cat([positive, negatives])``.

    Args:
        attention: transformers' "eager" or "sdpa".
        groups: the number of batches, into which the sequences are divided by length; one forward and backward each.
        autocast: products in bf16, weights in fp32.
        fused: AdamW in one pass and the momentum update over lists of tensors, in place of a loop over the parameters.
        compiled: ``torch.compile`` of the encoders and of the head with its loss.
    """

    def __init__(
        self,
        job: Job,
        attention: str = "sdpa",
        groups: int = 1,
        autocast: bool = False,
        fused: bool = True,
        compiled: bool = False,
    ) -> None:
        super().__init__(job)
        self.model = new_model(job)
        self.model.mlm.set_attn_implementation(attention)
        self.key = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.groups, self.autocast, self.fused, self.compiled = groups, autocast, fused, compiled
        decayed, others = ([p for p in self.model.parameters() if (p.dim() > 1) == decays] for decays in (True, False))
        parameters = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, fused=fused)
        self.queue = PlainQueue(job, torch.float32)
        self._lm_loss = self._lm_head
        if compiled:
            self._lm_loss = torch.compile(self._lm_head, dynamic=True)
            for model in (self.model, self.key):
                encoder_of(model.mlm).compile(dynamic=True)

    def set_dropout(self, share: float) -> None:
        set_dropout(self.model, share)

    def _lm_head(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = lm_decoder(self.model.mlm)(lm_transform(self.model.mlm, hidden))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.job.device.type, torch.bfloat16, enabled=self.autocast)

    def _grouped(self, stream: PackedSequences, pad: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Returns for each group: its indices of sequences [n], ids and mask [n, L]."""
        ids = padded(stream, stream.tokens, pad)
        lengths = torch.from_numpy(stream.lengths).to(ids.device)
        parts = []
        for order in np.array_split(np.argsort(stream.lengths, kind="stable"), self.groups):
            rows, width = torch.from_numpy(order).to(ids.device), int(stream.lengths[order].max())
            mask = torch.arange(width, device=ids.device) < lengths[rows, None]
            parts.append((rows, ids[rows, :width], mask))
        return parts

    def _vectors(self, model: AlignmentModel, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = encoder_of(model.mlm)(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(model.projection(hidden[:, 0]).float(), dim=1)

    def __call__(self) -> Figures:
        clock, pad = self.clock, self.model.mlm.config.pad_token_id
        clock.to("assemble")
        batch, streams = self.source(self.number)
        self.number += 1
        flat = torch.full_like(streams.tlm.tokens, -100, dtype=torch.int64).index_copy(
            0, streams.masked_positions, streams.labels
        )
        labels = padded(streams.tlm, flat, -100)
        tlm, query, key = (self._grouped(stream, pad) for stream in (streams.tlm, streams.query, streams.key))

        clock.to("key forward")
        keys = torch.empty(len(batch), DIM, device=self.job.device)
        with torch.no_grad(), self._autocast():
            for rows, ids, mask in key:
                keys[rows] = self._vectors(self.key, ids, mask)

        losses = []
        for (rows, ids, mask), (query_rows, query_ids, query_mask) in zip(tlm, query, strict=True):
            with self._autocast():
                clock.to("query forward")
                hidden = encoder_of(self.model.mlm)(input_ids=ids, attention_mask=mask).last_hidden_state
                vectors = self._vectors(self.model, query_ids, query_mask)
                clock.to("LM head")
                loss_tlm = self._lm_loss(hidden, labels[rows, : ids.shape[1]]) / len(streams.labels)
                clock.to("contrast")
                loss_moco = self.queue.loss(vectors, keys[query_rows], batch.groups[query_rows]) / len(batch)
            clock.to("backward")
            (loss_tlm + loss_moco).backward()
            losses.append((loss_tlm.detach(), loss_moco.detach()))

        clock.to("optimizer")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.to("EMA and queue")
        self._update()
        self.queue.push(keys, batch.groups)
        clock.to("")
        loss_tlm, loss_moco = (torch.stack(parts).sum() for parts in zip(*losses, strict=True))
        return {"loss_tlm": loss_tlm, "loss_moco": loss_moco, "grad_norm": norm}

    @torch.no_grad()
    def _update(self) -> None:
        if self.fused:
            torch._foreach_lerp_(list(self.key.parameters()), list(self.model.parameters()), 1 - MOMENTUM)
            return
        for k, q in zip(self.key.parameters(), self.model.parameters(), strict=True):
            k.data = MOMENTUM * k.data + (1 - MOMENTUM) * q.data


# --- packed ----------------------------------------------------------------------------------------------------------


class Masters:
    """fp32 masters of a model's weights, and the optimizer that updates them: the same as in DeepSpeed, but without it.
    ``tensors``: the weights themselves if they are fp32, else a copy of each."""

    def __init__(self, model: AlignmentModel, dtype: torch.dtype) -> None:
        self.optimizer = optimizer_for(model, 0.01, LEARNING_RATE, (0.9, 0.999), 1e-8)
        names = {id(p): name for name, p in model.named_parameters()}
        self.tensors = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.names = [names[id(p)] for p in self.tensors]
        self.working = self.tensors
        if dtype != torch.float32:
            masters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
            model.to(dtype)
            self.working = [model.get_parameter(name) for name in self.names]
            self.tensors = [masters[name] for name in self.names]
            starts = iter(self.tensors)
            for group in self.optimizer.param_groups:
                group["params"] = [next(starts) for _ in group["params"]]

    def working_copy(self, whole: Mapping[str, Tensor]) -> WorkingCopy:
        return WorkingCopy([whole[name] for name in self.names], lambda: None)

    def step(self) -> Tensor:
        """Clips, steps, and updates the working weights; returns the gradient norm."""
        if self.working is not self.tensors:
            for master, working in zip(self.tensors, self.working, strict=True):
                master.grad, working.grad = working.grad.float(), None
        norm = nn.utils.clip_grad_norm_(self.tensors, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.working is not self.tensors:
            with torch.no_grad():
                torch._foreach_copy_(self.working, self.tensors)
        return norm


class Packed(Step):
    """No padding, one forward over TLM pairs and query sentences; the parts of the product are options.

    Args:
        masked: the LM head reads only the masked positions, not all tokens.
        fused_loss: ``ops.masked_lm_loss`` and ``ops.infonce`` (with the ring) in place of cross-entropy over logits.
        fused_update: ``ops.ema_`` in place of operations on lists of tensors.
        compiled: ``compile_layers``.
    """

    def __init__(
        self,
        job: Job,
        masked: bool = False,
        fused_loss: bool = False,
        fused_update: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(job)
        self.masked, self.fused_loss, self.compiled = masked, fused_loss, compiled
        self.model = new_model(job)
        key = copy.deepcopy(self.model).to(job.dtype)
        self.masters = Masters(self.model, job.dtype)
        # Without the fused update, only its copies are used: a master and, in low precision, a working copy.
        self.momentum = MomentumEncoder(key, self.masters)
        self.fused_update = fused_update
        if fused_loss:
            self.ring = KeyQueue(job.queue, job.pairs, DIM, job.device, job.dtype)
            self.ring.fill(*first_keys(job))
            self.model.lm_loss.register_forward_pre_hook(lambda *_: self.clock.to("LM head"))
            self.model.lm_loss.register_forward_hook(lambda *_: self.clock.to("query forward"))
        else:
            self.queue = PlainQueue(job, job.dtype)
        for model in (self.model, key):
            fuse_projections(encoder_of(model.mlm))
            if compiled:
                compile_layers(encoder_of(model.mlm))

    def set_dropout(self, share: float) -> None:
        set_dropout(self.model, share)

    def __call__(self) -> Figures:
        clock = self.clock
        clock.to("assemble")
        batch, streams = self.source(self.number)
        self.number += 1
        clock.to("key forward")
        keys = self.momentum.keys(streams.key)
        clock.to("query forward")
        if self.fused_loss:
            tlm, query = self.model(streams)
            clock.to("contrast")
            ones = Weights(1.0, 1.0, TEMPERATURE)
            contrast = moco_loss(query, keys, batch.groups, self.ring, ones)
            losses = objective(tlm, contrast, ones, len(streams.labels), len(batch))
            total, tlm, moco = losses.total, losses.tlm, losses.contrast
        else:
            tlm, moco = self._plain_losses(batch, streams, keys)
            total = tlm / len(streams.labels) + moco / len(batch)
        clock.to("backward")
        total.backward()
        clock.to("optimizer")
        norm = self.masters.step()
        clock.to("EMA and queue")
        self._update()
        if self.fused_loss:
            self.ring.enqueue(keys, batch.groups, batch.step_indices)
            self.ring.commit(len(batch))
        else:
            self.queue.push(keys, batch.groups)
        clock.to("")
        means = tlm.detach() / len(streams.labels), moco.detach() / len(batch)
        return {"loss_tlm": means[0], "loss_moco": means[1], "grad_norm": norm}

    def _plain_losses(self, batch: PairBatch, streams: AssembledBatch, keys: Tensor) -> tuple[Tensor, Tensor]:
        mlm, counts = self.model.mlm, [len(streams.tlm.tokens), len(streams.query.tokens)]
        hidden, sentences = packed_hidden(encoder_of(mlm), join(streams.tlm, streams.query)).split(counts)
        pooled = pool_packed(sentences, streams.query.cu_seqlens, "cls")
        query = F.normalize(self.model.projection(pooled).float(), dim=1)
        self.clock.to("LM head")
        labels = streams.labels
        if self.masked:
            hidden = hidden.index_select(0, streams.masked_positions)
        else:
            labels = labels.new_full((counts[0],), -100).index_copy(0, streams.masked_positions, labels)
        logits = lm_decoder(mlm)(lm_transform(mlm, hidden))
        tlm = F.cross_entropy(logits.float(), labels, reduction="sum")
        self.clock.to("contrast")
        return tlm, self.queue.loss(query, keys, batch.groups)

    @torch.no_grad()
    def _update(self) -> None:
        if self.fused_update:
            self.momentum.update(MOMENTUM)
            return
        torch._foreach_lerp_(self.momentum.tensors, self.masters.tensors, 1 - MOMENTUM)
        self.momentum.refresh()
