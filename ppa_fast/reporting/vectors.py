"""Sentence vectors of a run's evaluation pairs before and after training: maps, similarities and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.errors import UserError
from ppa_fast.reporting.run import Run
from ppa_fast.tasks.embedder import MAX_TOKENS, Embedder
from ppa_fast.tasks.neighbours import nearest
from ppa_fast.training.checkpoint import Checkpoints
from ppa_fast.training.export import export

LINES = 500  # first lines of each language pair; 10,000 sentences of ten pairs take mBERT a few minutes on a CPU
MAPPED = 120  # sentence pairs on the map
COMPARED = 10  # sentence pairs in the similarity matrix
CONFUSED = 12  # confused sentences listed
CONFUSED_OF_A_PAIR = 2  # confused sentences listed per language pair and direction


@dataclass(frozen=True)
class Texts:
    """Line-parallel sentences of languages ``a`` and ``b``."""

    a: str
    b: str
    texts_a: list[str]
    texts_b: list[str]

    def __len__(self) -> int:
        return len(self.texts_a)


Vectors = list[tuple[Tensor, Tensor]]  # unit vectors fp32 [N, H] of both sides, per element of Texts


def read_texts(specs: Sequence[str]) -> list[Texts]:
    """The first ``LINES`` lines of each set. Raises UserError like ``read_eval_pairs``, and if ``specs`` is empty."""
    if not specs:
        raise UserError("the run has no evaluation pairs (--eval-pairs of train.py); pass --pairs to the report")
    found = [read_eval_pairs(spec) for spec in specs]
    return [Texts(source.a, source.b, a[:LINES], b[:LINES]) for source, a, b in found]


def embed(model: str, run: Run, texts: Sequence[Texts], title: str) -> Vectors:
    """Sentence vectors with the pooling, the layer and the maximum sentence length of the run's own evaluations.

    A sentence that occurs in several pairs is embedded once. Raises UserError for a model that cannot be loaded.
    """
    numbers = {text: i for i, text in enumerate(dict.fromkeys(t for s in texts for t in (*s.texts_a, *s.texts_b)))}
    embedder = Embedder(model, run.settings.get("contrast_layer"))
    embedder.max_tokens = min(embedder.max_tokens, run.store.get("max_tokens", MAX_TOKENS))
    found = embedder.sentences(list(numbers), run.settings["pooling"], progress=f"{run.name}: vectors {title}")
    vectors = F.normalize(found, dim=1)

    def of(side: list[str]) -> Tensor:
        return vectors[[numbers[text] for text in side]]

    return [(of(s.texts_a), of(s.texts_b)) for s in texts]


def embed_before(run: Run, texts: Sequence[Texts]) -> Vectors:
    """The base model's vectors."""
    return embed(run.settings["model"], run, texts, "before")


def selected_step(run: Run) -> int:
    """The step of the checkpoint that ``export`` selects: the best, else the latest.

    Raises UserError if there is no checkpoint.
    """
    checkpoints = Checkpoints(run.path)
    path = checkpoints.named("best") or checkpoints.named("latest")
    if path is None:
        raise UserError("the run has saved no checkpoint yet")
    return int(path.name.removeprefix("step-"))


def embed_after(run: Run, texts: Sequence[Texts], step: int) -> Vectors:
    """The vectors of the checkpoint of ``step``; raises UserError if it cannot be exported."""
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export(run.path, model, Checkpoints(run.path).path(step).name, run.settings.get("contrast_layer"))
        return embed(str(model), run, texts, "after")


def spread_out(n: int, k: int) -> list[int]:
    """``k`` evenly spaced row numbers out of ``n``; all if ``k`` ≥ ``n``."""
    return [int((i + 0.5) * n / k) for i in range(k)] if k < n else list(range(n))


@dataclass(frozen=True, eq=False)
class Projection:
    """A map: the points [K, 2] of both sides per language pair. ``explained``: the explained share of the variance."""

    points: list[tuple[Tensor, Tensor]]
    explained: float


def project(vectors: Vectors) -> Projection:
    """Projects vectors on the first two principal components of all; ``MAPPED`` sentence pairs in total."""
    everything = torch.cat([side for pair in vectors for side in pair]).double()
    centre = everything.mean(0)
    values, directions = torch.linalg.eigh(torch.cov(everything.T))
    plane = directions[:, [-1, -2]]
    plane = plane * plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()  # a direction's sign is arbitrary
    rows = [spread_out(len(a), max(1, MAPPED // len(vectors))) for a, _ in vectors]
    points = [
        ((a[chosen].double() - centre) @ plane, (b[chosen].double() - centre) @ plane)
        for (a, b), chosen in zip(vectors, rows, strict=True)
    ]
    return Projection(points, (values[-2:].sum() / values.sum().clamp(min=1e-30)).item())


def compared(texts: Sequence[Texts]) -> list[tuple[int, int]]:
    """The sentence pairs of the matrix as (index in ``texts``, row): language pairs in turn, distinct rows."""
    least = min(len(s) for s in texts)
    return [(i % len(texts), row) for i, row in enumerate(spread_out(least, COMPARED))]


def similarities(vectors: Vectors, chosen: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Cosines: row i, column j compares side a of the i-th chosen pair with side b of the j-th."""
    a, b = (torch.stack([vectors[number][side][row] for number, row in chosen]) for side in (0, 1))
    return (a @ b.T).tolist()


@dataclass(frozen=True)
class Confusion:
    """A sentence ``text`` of language ``source`` whose nearest neighbour in ``target`` is not its translation."""

    source: str
    target: str
    text: str
    found: str
    expected: str
    cosine_found: float
    cosine_expected: float


def confusions(texts: Sequence[Texts], vectors: Vectors) -> tuple[list[Confusion], int, int]:
    """The worst wrong nearest neighbours, the number of wrong ones, and the number of sentences.

    Sorted by how much nearer the neighbour is than the translation, with at most ``CONFUSED_OF_A_PAIR`` per language
    pair and direction. A neighbour whose text equals the translation is not wrong.
    """
    worst: list[Confusion] = []
    wrong = total = 0
    for s, (a, b) in zip(texts, vectors, strict=True):
        forward, backward = nearest(a, b, 1)
        ways = ((s.a, s.b, s.texts_a, s.texts_b, forward), (s.b, s.a, s.texts_b, s.texts_a, backward))
        expected = (a * b).sum(1).tolist()
        for source, target, own, other, found in ways:
            here = [
                Confusion(source, target, own[i], other[j], other[i], cosine, expected[i])
                for i, (j, cosine) in enumerate(
                    zip(found.index[:, 0].tolist(), found.similarity[:, 0].tolist(), strict=True)
                )
                if other[j] != other[i]
            ]
            wrong, total = wrong + len(here), total + len(own)
            worst += islice(sorted(here, key=_cosine_gap), CONFUSED_OF_A_PAIR)
    return sorted(worst, key=_cosine_gap)[:CONFUSED], wrong, total


def _cosine_gap(confusion: Confusion) -> float:
    return confusion.cosine_expected - confusion.cosine_found
