"""Evaluates translation retrieval during training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppa_fast.data.store.tokenize import TextTokenizer
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.vectors import check_outputs, sentence_vectors
from ppa_fast.tasks.retrieval import alignment_uniformity, retrieval_scores, summarise
from ppa_fast.training.preflight import RunPlan


def evaluate_pairs(encoder: nn.Module, plan: RunPlan, device: torch.device) -> dict[str, Any]:
    """Retrieval P@1, alignment and uniformity on the plan's evaluation pairs, as in ``retrieval.summarise``.

    Call it on every rank; each encodes its share of the sentences. One rank must be able to run ``encoder`` alone.
    Raises UserError for vectors that are not finite.
    """
    rank, world, data, layer = dist.get_rank(), dist.get_world_size(), plan.data, plan.settings.contrast_layer
    config: Any = encoder.config
    encode = TextTokenizer(plan.tokenizer, min(data.max_tokens, max_sequence(config) - 2))
    pairs: dict[str, dict[str, Any]] = {}
    for source, *sides in plan.eval_pairs:
        vectors = []
        for texts in sides:
            rows = encode(texts[rank::world])
            mine = sentence_vectors(encoder, rows, data.special, plan.pooling, layer, device)
            everyone: list[Tensor] = [mine] * world
            dist.all_gather_object(everyone, mine)
            whole = torch.empty(len(texts), mine.shape[1])
            for r, part in enumerate(everyone):
                whole[r::world] = part
            check_outputs(plan.settings.model, whole, texts.__getitem__)
            vectors.append(whole)
        a_to_b, b_to_a = retrieval_scores(*vectors)
        alignment, uniformity = alignment_uniformity(*vectors)
        scores = {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": len(sides[0])}
        pairs[source.name] = {**scores, "alignment": alignment, "uniformity": uniformity}
    return summarise(pairs)
