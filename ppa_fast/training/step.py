"""One global step, from a batch of translation pairs to the committed queue, as described in docs/method.md."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from ppa_fast.data.loading.batching import Batches, PairBatch
from ppa_fast.data.loading.packing import packer_for
from ppa_fast.hub import load_pretrained
from ppa_fast.model.alignment import AlignmentModel
from ppa_fast.model.encoder import (
    checkpoint_activations,
    encoder_of,
    freeze,
    freeze_head,
    has_lm_head,
    load_encoder,
    load_masked_lm,
    separate_layers,
)
from ppa_fast.model.momentum import MomentumEncoder
from ppa_fast.model.objective import Weights, objective
from ppa_fast.model.packed import compile_layers, fuse_projections
from ppa_fast.model.queue import KeyQueue
from ppa_fast.ops.assemble import AssembledBatch, assemble
from ppa_fast.ops.philox import torch_seed
from ppa_fast.training import distributed
from ppa_fast.training.contrast import Contrast
from ppa_fast.training.metrics import DeferredAllReduce, StepMetrics
from ppa_fast.training.moco import Moco
from ppa_fast.training.optimizer import optimizer_for
from ppa_fast.training.prefetcher import Prefetcher
from ppa_fast.training.preflight import RunPlan
from ppa_fast.training.symmetric import Symmetric
from ppa_fast.training.zero import ZeroMasters


class TrainingStep:
    """Computes global steps on one rank.

    ``engine``: DeepSpeed engine around the query encoder with its heads. ``masters``: its fp32 weights. ``momentum``:
    the momentum encoder; ``queue``: earlier keys; both None without MoCo. ``contrast``: the sentence-level objective.
    ``prefetcher``: the micro-batches by global step. ``frozen``: copies of the untrained weights by name.
    ``model_config``: the encoder's configuration.
    """

    def __init__(self, plan: RunPlan, device: torch.device) -> None:
        import deepspeed

        self.plan, self.device = plan, device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        settings, config = plan.settings, plan.config

        model = load_model(plan)
        self.model_config = model.mlm.config
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.frozen = {name: initial[name] for name, p in model.named_parameters() if not p.requires_grad}
        has_momentum = settings.sentence_objective == "moco"
        if has_momentum or config.stage == 3:  # complete on every rank, unlike the query encoder at stage 3
            self._complete_model = copy.deepcopy(model).to(device, config.dtype)
            if settings.compile:
                compile_layers(encoder_of(self._complete_model.mlm))
        if settings.compile:
            compile_layers(encoder_of(model.mlm))
        betas = (settings.adam_beta1, settings.adam_beta2)
        optimizer = optimizer_for(
            model.to(device), settings.weight_decay, settings.learning_rate, betas, settings.adam_epsilon
        )
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config.values)
        self.masters = ZeroMasters(self.engine)
        self.masters.set_weights(initial)
        if settings.anchor:
            self.masters.anchor(initial, settings.anchor)
        self.momentum = MomentumEncoder(self._complete_model, self.masters) if has_momentum else None
        dim = settings.projection_dim or self.model_config.hidden_size
        self.queue = KeyQueue(settings.queue_size, config.batch, dim, device, config.dtype) if has_momentum else None
        self.weights = Weights(
            tlm=settings.tlm_weight if settings.tlm else 0.0,
            contrast=settings.moco_weight if settings.moco else 0.0,
            temperature=settings.temperature,
        )
        self.contrast = self._contrast()
        self.pinned = device.type == "cuda"
        self.packer = packer_for(plan.data, **plan.masking_options)
        batches = Batches(self.packer, plan.sampler, config.micro_batch, self.rank, self.world, pinned=self.pinned)
        self.prefetcher = Prefetcher(batches, self.assemble, device)

    def _contrast(self) -> Contrast:
        settings, engine = self.plan.settings, self.engine
        if self.momentum and self.queue:
            return Moco(engine, settings.seed, self.momentum, self.queue, self.weights, settings.in_batch_negatives)
        if settings.sentence_objective == "symmetric":
            return Symmetric(engine, settings.seed, settings.temperature)
        return Contrast(engine, settings.seed)

    def assemble(self, batch: PairBatch) -> AssembledBatch:
        """The query, key and masked TLM sequences of a micro-batch, on the device."""
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
            **self.plan.masking_options,
        )

    def __call__(self, step: int, lr: float, momentum: float, stop: bool = False) -> StepMetrics:
        """Computes global step ``step`` over all ranks with learning rate ``lr``.

        ``momentum``: of the momentum encoder. The host does not synchronize before the optimizer's step, which reads
        the gradient norm. ``stop``: request the end of the run from this rank; the metrics state whether any rank
        requested it.
        """
        batches = self.prefetcher(step)
        totals, pairs = batches[0][0].totals, self.plan.config.batch
        tlm = contrast = top1 = torch.zeros((), device=self.device)
        self.contrast.begin(step, batches)
        for number, (batch, streams) in enumerate(batches, 1):
            tlm_sum, contrast_loss = self.contrast.forward(batch, streams)
            losses = objective(tlm_sum, contrast_loss, self.weights, totals.masked, pairs)
            # Undo DeepSpeed's division by accumulation steps and mean over ranks: the totals are parts of a sum.
            self.masters.backward(losses.total * (self.plan.config.accumulation * self.world))
            if number < len(batches):
                self.engine.step()
            tlm, contrast, top1 = tlm + losses.tlm, contrast + losses.contrast, top1 + losses.top1
        sums = DeferredAllReduce({"tlm": tlm, "contrast": contrast, "top1": top1, "stop": stop}, self.device)

        applied, norm = self.masters.step(lr)
        self.contrast.end(applied, momentum)
        return StepMetrics(sums, self.weights, totals, applied, self.plan.settings.contrast, grad_norm=norm, lr=lr)

    @contextmanager
    def complete_encoder(self) -> Iterator[nn.Module]:
        """The query encoder in a form that one rank can run alone.

        Under ZeRO-3 its forward is collective, but the ranks have unequal numbers of batches. The weights are then
        copied temporarily to a complete model, which the momentum encoder, if any, also uses.
        """
        if self.masters.stage < 3:
            yield encoder_of(self.engine.module.mlm)
            return
        weights = [tensor.to(self.plan.config.dtype) for tensor in self.masters.tensors]
        self.masters.copy_to(weights, dict(self._complete_model.named_parameters()))
        yield encoder_of(self._complete_model.mlm)
        if self.momentum:
            self.momentum.refresh()

    def close(self) -> None:
        """Stops the prefetcher's thread and the engine; keeps the process group, which other code may use."""
        self.prefetcher.close()
        self.engine.destroy()


def _began_with_head(plan: RunPlan) -> bool:
    """Whether the run to resume has an MLM head. Runs of earlier versions have a frozen one even without TLM."""
    base = Path(plan.settings.output) / "model"
    return plan.resume_from is not None and base.is_dir() and has_lm_head(load_pretrained(AutoConfig, base))


def load_model(plan: RunPlan) -> AlignmentModel:
    """The base model with its heads, in training mode, fp32, on the CPU; new weights depend on the run's seed."""
    settings = plan.settings
    head_seed = torch_seed(settings.seed, 0, 2)
    has_head = settings.tlm or _began_with_head(plan)
    mlm: Any = load_masked_lm(settings.model, head_seed) if has_head else load_encoder(settings.model)
    if not settings.tlm:
        freeze_head(mlm)
    if settings.contrast_layer:
        separate_layers(encoder_of(mlm), "contrast_layer")
    freeze(mlm, settings.frozen(mlm.config.num_hidden_layers))
    if settings.activation_checkpointing:
        checkpoint_activations(mlm)
    if plan.config.stage < 3:  # stage 3 gathers a module's weights when it is called
        fuse_projections(encoder_of(mlm))
    torch.manual_seed(torch_seed(settings.seed, 0, 0))
    model = AlignmentModel(
        mlm,
        plan.pooling,
        settings.projection_dim,
        settings.tlm,
        settings.sentence_objective,
        plan.bf16_products,
        settings.contrast_layer,
    )
    return model.train()  # a loaded model is in eval mode
