"""How well the encoder retrieves translations while it trains."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ppa_fast.data.encode import TextEncoder
from ppa_fast.evaluation.retrieval import alignment_uniformity, retrieval_scores, summarise
from ppa_fast.model.encoder import max_sequence
from ppa_fast.model.vectors import sentence_vectors
from ppa_fast.training.plan import Plan


def evaluate_pairs(encoder: nn.Module, plan: Plan, device: torch.device) -> dict[str, Any]:
    """Retrieval P@1, alignment and uniformity on the plan's evaluation pairs, as ``retrieval.summarise`` gives them.

    Every rank calls it and encodes its share of the sentences; ``encoder`` is one that a rank can run alone.
    """
    rank, world, data = dist.get_rank(), dist.get_world_size(), plan.data
    config: Any = encoder.config
    encode = TextEncoder(plan.tokenizer, min(data.max_tokens, max_sequence(config) - 2))
    pairs: dict[str, dict[str, Any]] = {}
    for source, *sides in plan.eval_pairs:
        vectors = []
        for texts in sides:
            mine = sentence_vectors(
                encoder, encode(texts[rank::world]), data.special, plan.settings.pooling, device=device
            )
            everyone: list[Tensor] = [mine] * world
            dist.all_gather_object(everyone, mine)
            whole = torch.empty(len(texts), mine.shape[1])
            for r, part in enumerate(everyone):
                whole[r::world] = part
            vectors.append(whole)
        a_to_b, b_to_a = retrieval_scores(*vectors)
        alignment, uniformity = alignment_uniformity(*vectors)
        scores = {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": len(sides[0])}
        pairs[source.name] = {**scores, "alignment": alignment, "uniformity": uniformity}
    return summarise(pairs)
