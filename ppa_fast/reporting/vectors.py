"""The sentence vectors of a run's evaluation pairs, before training and after, and what can be seen in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.data.corpus import read_eval_pairs
from ppa_fast.errors import UserError
from ppa_fast.evaluation.embedder import MAX_TOKENS, Embedder
from ppa_fast.evaluation.neighbours import nearest
from ppa_fast.reporting.run import Run
from ppa_fast.training.checkpoint import Checkpoints
from ppa_fast.training.export import export

LINES = 500  # of each language pair, the first: 10,000 sentences of ten pairs take mBERT a few minutes on a CPU
MAPPED = 120  # pairs on the map
COMPARED = 10  # pairs in the matrix
CONFUSED = 12  # sentences in the list of the most confused
CONFUSED_OF_A_PAIR = 2


@dataclass(frozen=True)
class Texts:
    """Line-parallel sentences of languages ``a`` and ``b``."""

    a: str
    b: str
    texts_a: list[str]
    texts_b: list[str]

    def __len__(self) -> int:
        return len(self.texts_a)


Vectors = list[tuple[Tensor, Tensor]]  # unit vectors fp32 [N, H] of both sides, for each of the Texts


def read_texts(specs: Sequence[str]) -> list[Texts]:
    """The first ``LINES`` lines of evaluation sets; raises UserError as ``read_eval_pairs`` does, and for none."""
    if not specs:
        raise UserError("the run has no evaluation pairs (--eval-pairs of train.py); --pairs gives them to the report")
    found = [read_eval_pairs(spec) for spec in specs]
    return [Texts(source.a, source.b, a[:LINES], b[:LINES]) for source, a, b in found]


def embed(model: str, run: Run, texts: Sequence[Texts], title: str) -> Vectors:
    """Vectors as the run's own evaluations have them: its pooling, its longest sentence.

    Each sentence is read once, however many pairs it is in. Raises UserError for a model that cannot be loaded.
    """
    numbers = {text: i for i, text in enumerate(dict.fromkeys(t for s in texts for t in (*s.texts_a, *s.texts_b)))}
    embedder = Embedder(model)
    embedder.max_tokens = min(embedder.max_tokens, run.store.get("max_tokens", MAX_TOKENS))
    found = embedder.sentences(list(numbers), run.settings["pooling"], progress=f"{run.name}: vectors {title}")
    vectors = F.normalize(found, dim=1)

    def of(side: list[str]) -> Tensor:
        return vectors[[numbers[text] for text in side]]

    return [(of(s.texts_a), of(s.texts_b)) for s in texts]


def embed_before(run: Run, texts: Sequence[Texts]) -> Vectors:
    """The base model's vectors."""
    return embed(run.settings["model"], run, texts, "before")


def embed_after(run: Run, texts: Sequence[Texts]) -> tuple[int, Vectors]:
    """The step of the checkpoint that an export would take (the best, else the latest), and its vectors.

    Raises UserError where there is none yet, or it cannot be exported.
    """
    checkpoints = Checkpoints(run.path)
    path = checkpoints.named("best") or checkpoints.named("latest")
    if path is None:
        raise UserError("the run has saved no checkpoint yet")
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export(run.path, model, path.name)
        return int(path.name.removeprefix("step-")), embed(str(model), run, texts, "after")


def spread_out(n: int, k: int) -> list[int]:
    """``k`` of ``n`` row numbers, evenly; all of them where there are no more."""
    return [int((i + 0.5) * n / k) for i in range(k)] if k < n else list(range(n))


@dataclass(frozen=True, eq=False)
class Projection:
    """A map: for each language pair the points [K, 2] of both sides; ``explained``: the share of the variance."""

    points: list[tuple[Tensor, Tensor]]
    explained: float


def project(vectors: Vectors) -> Projection:
    """The first two principal components of all vectors; of each pair the same rows, ``MAPPED`` pairs in all."""
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
    """The pairs of the matrix: (number of the Texts, row), the language pairs in turn, rows that differ."""
    least = min(len(s) for s in texts)
    return [(i % len(texts), row) for i, row in enumerate(spread_out(least, COMPARED))]


def similarities(vectors: Vectors, chosen: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Cosines: row i, column j is of side a of the i-th chosen pair and side b of the j-th."""
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
    """The worst wrong neighbours, by how much nearer they are than the translation, at most ``CONFUSED_OF_A_PAIR`` of
    a language pair and direction; how many are wrong; of how many sentences.

    Another line with the very text of the translation is not wrong.
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
            worst += islice(sorted(here, key=_gap), CONFUSED_OF_A_PAIR)
    return sorted(worst, key=_gap)[:CONFUSED], wrong, total


def _gap(confusion: Confusion) -> float:
    return confusion.cosine_expected - confusion.cosine_found
