"""Nearest neighbours by cosine in both directions, and the margin criterion (Artetxe and Schwenk, 2019).

The similarities of N and M vectors are N·M numbers, 160 GB for 200,000 by 200,000, and are never held: the product is
taken in blocks, and each block serves both directions. A flat index of faiss does the same sums, on a CPU in 0.6 to 0.9
of the time (20,000 vectors a side, one thread of an AMD EPYC), but of equal similarities it returns any: where a corpus
repeats sentences, scores would depend on whether it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppa_fast.progress import Progress

BLOCK = 4096  # vectors a side: a block of similarities is 64 MiB
MARGIN_NEIGHBOURS = 4  # Artetxe and Schwenk's k


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For each of N vectors its k nearest, nearest first: ``similarity`` fp32 [N, k], ``index`` int64 [N, k]."""

    similarity: Tensor
    index: Tensor

    def update(self, similarity: Tensor, first: int) -> None:
        """Takes in the similarities [N, B] to vectors first … first + B − 1, which come after those seen so far."""
        k = self.similarity.shape[1]
        rows = (similarity.amax(1) > self.similarity[:, -1]).nonzero().squeeze(1)
        # The found ones in front: of equal values ``max`` takes the first, which is the lowest index.
        pool = torch.cat([self.similarity[rows], similarity[rows]], 1)
        found = self.index[rows]
        for rank in range(k):
            best, place = pool.max(1, keepdim=True)
            pool.scatter_(1, place, -torch.inf)
            old = found.gather(1, place.clamp(max=k - 1))
            self.similarity[rows, rank] = best.squeeze(1)
            self.index[rows, rank] = torch.where(place < k, old, place - k + first).squeeze(1)


def nearest(a: Tensor, b: Tensor, k: int, progress: str | None = None) -> tuple[Neighbours, Neighbours]:
    """The k nearest rows of ``b`` for each row of ``a``, and of ``a`` for each row of ``b``, by inner product.

    ``a`` [N, H] and ``b`` [M, H] are unit vectors, fp32, on one device; of equal similarities the lowest index comes
    first; where a side has fewer than k rows, k is their number. ``progress`` is the title of a progress bar.

    Memory beside the vectors: at most ``12·BLOCK·(BLOCK + k)`` bytes of similarities (a block, and twice the rows of it
    that hold a nearer neighbour than those known: at first all) and ``12·k·(N + M)`` of results. For 200,000 vectors a
    side and k = 4 that is 211 MiB.
    """
    sides = [(len(a), min(k, len(b))), (len(b), min(k, len(a)))]
    forward, backward = (
        Neighbours(
            torch.full(shape, -torch.inf, device=a.device), torch.zeros(shape, dtype=torch.int64, device=a.device)
        )
        for shape in sides
    )
    with Progress(progress or "", len(a), "sentences", enabled=progress is not None) as bar:
        for i in range(0, len(a), BLOCK):
            rows = slice(i, i + BLOCK)
            for j in range(0, len(b), BLOCK):
                columns = slice(j, j + BLOCK)
                similarity = a[rows] @ b[columns].T
                Neighbours(forward.similarity[rows], forward.index[rows]).update(similarity, j)
                Neighbours(backward.similarity[columns], backward.index[columns]).update(similarity.T, i)
            bar.update(len(a[rows]))
    return forward, backward


def margin(of: Neighbours, back: Neighbours) -> Tensor:
    """The margin of each neighbour, fp32 [N, k]: its cosine over the mean cosine of both sides' neighbourhoods.

    ``of`` and ``back`` are the two results of :func:`nearest`. For x and its neighbour y it is the ratio of Artetxe and
    Schwenk (2019): ``cos(x, y) / (Σ_{z ∈ NN(x)} cos(x, z) / 2k + Σ_{z ∈ NN(y)} cos(y, z) / 2k)``. A pair that is near
    only because everything is near to one of the two scores about 1.
    """
    around, around_neighbour = of.similarity.mean(1, keepdim=True), back.similarity.mean(1)[of.index]
    return of.similarity / ((around + around_neighbour) / 2)
