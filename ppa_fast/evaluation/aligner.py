"""Word links from an encoder: by similarity of subwords in context; words are linked where subwords of them are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.evaluation.embedder import Embedder
from ppa_fast.progress import Progress

if TYPE_CHECKING:
    from ppa_fast.evaluation.word_alignment import Link

CHUNK = 1024  # pairs whose vectors are held at once: 0.25 GB for 40 subwords a sentence of width 768


def default_layer(layers: int) -> int:
    """The layer two thirds up: 8 of 12, SimAlign's and awesome-align's choice for mBERT and XLM-R; 16 of 24, 4 of 6."""
    return round(layers * 2 / 3)


def mutual_argmax(a: Tensor, b: Tensor) -> Tensor:
    """Which of S and T vectors are each other's nearest by cosine, bool [S, T] (SimAlign; Jalili Sabet et al., 2020).

    ``a`` [S, H], ``b`` [T, H], at least one row each; of equal cosines the first counts.
    """
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    forward, backward = torch.zeros_like(similarity, dtype=torch.bool), torch.zeros_like(similarity, dtype=torch.bool)
    forward.scatter_(1, similarity.argmax(1, keepdim=True), True)
    backward.scatter_(0, similarity.argmax(0, keepdim=True), True)
    return forward & backward


def softmax_intersection(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Which inner products pass in both directions, bool [S, T] (awesome-align; Dou and Neubig, 2021).

    ``a`` [S, H], ``b`` [T, H]. They pass where both the softmax over the target and that over the source are above
    ``threshold``. The vectors are not normalised.
    """
    product = a @ b.T
    return (product.softmax(1) > threshold) & (product.softmax(0) > threshold)


def align(
    embedder: Embedder, pairs: Sequence[tuple[list[str], list[str]]], threshold: float | None = None
) -> tuple[set[Link], int]:
    """The links of tokenised sentence pairs, and the number of pairs that are longer than the encoder reads.

    By mutual argmax; with a ``threshold``, by softmax and intersection.
    """
    links: set[Link] = set()
    truncated = 0
    with Progress("aligning", len(pairs), "pairs") as bar:
        for start in range(0, len(pairs), CHUNK):
            sides = [sentence for pair in pairs[start : start + CHUNK] for sentence in pair]
            embedded, longer = embedder.words(sides)
            truncated += len({row // 2 for row in longer})
            both = zip(embedded[::2], embedded[1::2], strict=True)
            for sentence, ((a, words_a), (b, words_b)) in enumerate(both, start):
                if len(a) and len(b):
                    linked = mutual_argmax(a, b) if threshold is None else softmax_intersection(a, b, threshold)
                    source, target = linked.nonzero().unbind(1)
                    found = zip(words_a[source].tolist(), words_b[target].tolist(), strict=True)
                    links.update((sentence, i, j) for i, j in found)
                bar.update()
    return links, truncated
