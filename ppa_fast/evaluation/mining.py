"""Mining of translations from two monolingual corpora, the task of BUCC (Zweigenbaum et al., 2018).

As Artetxe and Schwenk (2019) do it, and XTREME after them: margin scores, one-to-one greedily, a threshold tuned on one
set and applied to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppa_fast.data.examples import output_file
from ppa_fast.data.lines import text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import write_text
from ppa_fast.progress import note

if TYPE_CHECKING:
    from torch import Tensor

    from ppa_fast.evaluation.embedder import Embedder

Pair = tuple[str, str]


class Side(NamedTuple):
    """The sentences of one language: their ids and texts."""

    ids: list[str]
    texts: list[str]


class Corpus(NamedTuple):
    """Two sides, and the gold pairs of ids if they are known."""

    a: Side
    b: Side
    gold: set[Pair] | None


def _columns(path: str | Path, expected: str, most: int = 2) -> list[tuple[int, list[str]]]:
    """The numbered lines of a TSV, each of 2 to ``most`` columns, none of them empty; another line is an error."""
    rows = []
    for number, line in text_lines(path):
        columns = [column.strip() for column in line.split("\t")]
        if not 2 <= len(columns) <= most or not all(columns):
            raise UserError(f"{path}:{number}: found {line[:80]!r}, expected {expected}")
        rows.append((number, columns))
    return rows


def read_side(path: str | Path) -> Side:
    """Reads ``id<TAB>text`` lines; raises UserError for another line, an id given twice, and an empty file."""
    rows = _columns(path, "id<TAB>text")
    first: dict[str, int] = {}
    for number, (id_, _) in rows:
        if first.setdefault(id_, number) != number:
            raise UserError(f"{path}:{number}: id {id_!r} is that of line {first[id_]} too")
    if not rows:
        raise UserError(f"{path}: no sentences, expected lines id<TAB>text")
    return Side(list(first), [text for _, (_, text) in rows])


def read_pairs(path: str | Path, a: Side | None = None, b: Side | None = None) -> set[Pair]:
    """Reads ``id<TAB>id`` lines, further columns aside; a pair given twice counts once.

    Raises UserError for another line, and for ids that are not in ``a`` and ``b``, where these are given.
    """
    rows = _columns(path, "id<TAB>id", most=3)
    known = [set(side.ids) if side else None for side in (a, b)]
    for number, columns in rows:
        for id_, ids in zip(columns, known, strict=False):
            if ids is not None and id_ not in ids:
                raise UserError(f"{path}:{number}: id {id_!r} is none of the corpus's")
    return {(columns[0], columns[1]) for _, columns in rows}


def read_gold(path: str | Path, a: Side | None = None, b: Side | None = None) -> set[Pair]:
    """``read_pairs`` of gold pairs, of which there must be some: mining may find nothing, gold without any is none."""
    gold = read_pairs(path, a, b)
    if not gold:
        raise UserError(f"{path}: no pairs, expected lines id<TAB>id")
    return gold


def read_corpus(spec: str, flag: str, gold: bool) -> Corpus:
    """Reads ``SRC,TGT,GOLD``, or, where ``gold`` is not needed, ``SRC,TGT``."""
    names = spec.split(",")
    if not all(names) or len(names) not in ((3,) if gold else (2, 3)):
        raise UserError(f"{flag} {spec}: expected SRC,TGT,GOLD" + ("" if gold else " or SRC,TGT"))
    a, b = read_side(names[0]), read_side(names[1])
    return Corpus(a, b, read_gold(names[2], a, b) if len(names) == 3 else None)


def score_pairs(mined: set[Pair], gold: set[Pair]) -> dict[str, float]:
    """``{"precision": …, "recall": …, "f1": …}`` of mined pairs, shares; F1 = 2 · correct / (mined + gold)."""
    correct = len(mined & gold)
    return {
        "precision": correct / len(mined) if mined else 0.0,
        "recall": correct / len(gold),
        "f1": 2 * correct / (len(mined) + len(gold)),
    }


def best_threshold(scores: NDArray[np.float64], correct: NDArray[np.bool_], gold: int) -> float:
    """The threshold of highest F1 for candidates with descending ``scores`` [C], of which ``correct`` [C] are gold.

    It lies halfway between the last score that is taken and the next, as in LASER; of equal F1 the highest counts.
    """
    f1 = 2 * correct.cumsum() / (np.arange(1, len(scores) + 1) + gold)
    following = np.append(scores[1:], scores[-1:] - 1)
    last = int(np.where(scores > following, f1, -1).argmax())  # equal scores are taken together
    return float((scores[last] + scores[last + 1]) / 2) if last + 1 < len(scores) else float(scores[last])


def one_to_one(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Of candidates (a_i, b_i), best first, those whose two sentences are in no better one that is kept."""
    kept, seen_a, seen_b = [], set(), set()
    for number, (i, j) in enumerate(zip(a, b, strict=True)):
        if i not in seen_a and j not in seen_b:
            seen_a.add(i)
            seen_b.add(j)
            kept.append(number)
    return kept


def mine(a: Tensor, b: Tensor, progress: str | None = None) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Pairs of rows of ``a`` [N, H] and ``b`` [M, H] with their margins, best first, each row in at most one.

    ``a`` and ``b`` are unit vectors, fp32, on one device. Candidates are, for each row of either side, the one of its 4
    nearest neighbours by cosine with the largest margin (ratio; ``neighbours.margin``). Memory: see
    ``neighbours.nearest``.
    """
    import torch

    from ppa_fast.evaluation.neighbours import MARGIN_NEIGHBOURS, margin, nearest

    forward, backward = nearest(a, b, MARGIN_NEIGHBOURS, progress)
    scores, found = [], []
    for of, back in ((forward, backward), (backward, forward)):
        best, place = margin(of, back).max(1, keepdim=True)
        scores.append(best.squeeze(1))
        found.append(of.index.gather(1, place).squeeze(1))
    rows = torch.cat([torch.arange(len(a), device=a.device), found[1]])
    columns = torch.cat([found[0], torch.arange(len(b), device=b.device)])
    ordered, order = torch.cat(scores).double().sort(descending=True, stable=True)
    pairs = (rows[order].tolist(), columns[order].tolist())
    kept = one_to_one(*pairs)
    return [pairs[0][n] for n in kept], [pairs[1][n] for n in kept], ordered.cpu().numpy()[kept]


def _mine_corpus(
    embedder: Embedder, corpus: Corpus, pooling: str, name: str
) -> tuple[list[Pair], NDArray[np.float64], int]:
    """Pairs of ids with their margins, best first, and the number of sentences whose text occurs more than once.

    Equal texts are one sentence among neighbours. A mined one is no pair: it names no id (as in LASER's scoring).
    """
    import torch.nn.functional as F

    vectors: list[Tensor] = []
    ids: list[list[str | None]] = []
    repeated = 0
    for side, title in ((corpus.a, "source"), (corpus.b, "target")):
        rows: dict[str, list[str]] = {}
        for id_, text in zip(side.ids, side.texts, strict=True):
            rows.setdefault(text, []).append(id_)
        embedded = embedder.sentences(list(rows), pooling, progress=f"{name}: encoding {title}").to(embedder.device)
        vectors.append(F.normalize(embedded, dim=1, out=embedded))
        ids.append([same[0] if len(same) == 1 else None for same in rows.values()])
        repeated += sum(len(same) for same in rows.values() if len(same) > 1)
    a, b, scores = mine(vectors[0], vectors[1], progress=f"{name}: nearest neighbours")
    named = [(ids[0][i], ids[1][j]) for i, j in zip(a, b, strict=True)]
    kept = [number for number, pair in enumerate(named) if None not in pair]
    return [(str(named[n][0]), str(named[n][1])) for n in kept], scores[kept], repeated


def evaluate_mining(
    model: str | None = None,
    dev: str | None = None,
    test: str | None = None,
    gold: str | Path | None = None,
    predictions: str | Path | None = None,
    pooling: str | None = None,
    layer: int | None = None,
    mined_out: str | Path | None = None,
) -> dict[str, Any]:
    """Precision, recall and F1 of mined translations, of a model or of a file of pairs.

    Args:
        model: name or folder of any Hugging Face encoder, with its tokenizer (see ``embedder.Embedder``).
        dev: ``SRC,TGT,GOLD``, files of BUCC's form: ``id<TAB>text`` twice, and ``id<TAB>id``. Tunes the threshold.
        test: ``SRC,TGT,GOLD``, or without gold pairs ``SRC,TGT``: what the threshold is applied to.
        gold, predictions: instead of a model, files of gold and mined pairs, ``id<TAB>id``.
        pooling: "cls" or "mean"; None is what the folder states (sentence-transformers' configuration), else "mean".
        layer: whose output is pooled; None the last, 0 the embeddings.
        mined_out: file for the mined pairs of the test set (without one, of dev), ``id<TAB>id<TAB>margin``.

    Returns:
        Of files ``{"precision": share, "recall": share, "f1": share, "mined": pairs, "gold": pairs}``. Of a model
        ``{"threshold": margin, "dev": {these, "sentences": [N, M], "repeated": n}, "test": {…} or None, "model": …,
        "pooling": …, "layer": …}``, and at the top the three shares of the test set, or of dev without a test set;
        a test set without gold pairs has none.

    Vectors take ``4·H·(N + M)`` bytes (1.2 GB for 200,000 sentences a side of width 768), ``neighbours.nearest`` says
    what is added to that. Raises UserError for unusable files and requests.
    """
    if mined_out is not None:
        if model is None:
            raise UserError(f"--mined-out {mined_out}: goes with a model")
        mined_out = output_file(mined_out, "--mined-out")
    if (gold is None) != (predictions is None) or (model is None) != (dev is None) or (gold is None) == (model is None):
        raise UserError("mine: expected either gold and predictions, or a model with dev")
    if gold is not None and predictions is not None:
        wanted, found = read_gold(gold), read_pairs(predictions)
        if not {a for a, _ in found} & {a for a, _ in wanted}:
            note(f"{predictions}: no pair begins with an id that a pair in {gold} begins with; expected the same order")
        return {**score_pairs(found, wanted), "mined": len(found), "gold": len(wanted)}
    assert model is not None
    assert dev is not None
    corpora = {"dev": read_corpus(dev, "--dev", gold=True)}
    if test:
        corpora["test"] = read_corpus(test, "--test", gold=False)

    from ppa_fast.evaluation.embedder import Embedder, stated_pooling

    embedder = Embedder(model, layer)
    pooling = pooling or stated_pooling(model) or "mean"
    result: dict[str, Any] = {"dev": None, "test": None}
    threshold = 0.0
    for name, corpus in corpora.items():
        pairs, margins, repeated = _mine_corpus(embedder, corpus, pooling, name)
        if not pairs:
            raise UserError(f"--{name}: every sentence occurs more than once; expected some that have one id")
        if name == "dev" and corpus.gold is not None:
            correct = np.array([pair in corpus.gold for pair in pairs])
            threshold = best_threshold(margins, correct, len(corpus.gold))
        count = int((margins >= threshold).sum())
        scores: dict[str, Any] = {"mined": count, "sentences": [len(corpus.a.ids), len(corpus.b.ids)]}
        if corpus.gold is not None:
            scores = {**score_pairs(set(pairs[:count]), corpus.gold), "gold": len(corpus.gold), **scores}
        result[name] = {**scores, "repeated": repeated}
    if mined_out is not None:
        lines = (f"{a}\t{b}\t{margin:.6f}\n" for (a, b), margin in zip(pairs[:count], margins, strict=False))
        write_text(Path(mined_out), "".join(lines))
    last = result["test"] or result["dev"]
    top = {metric: last[metric] for metric in ("precision", "recall", "f1") if metric in last}
    return {**top, "threshold": threshold, **result, "model": model, "pooling": pooling, "layer": layer}


def format_scores(result: dict[str, Any]) -> str:
    """The scores in per cent: a line for each set."""
    sets = {name: result[name] for name in ("dev", "test") if result.get(name)} or {"": result}
    lines = []
    for name, scores in sets.items():
        if "f1" in scores:
            shares = "  ".join(f"{head} {100 * scores[key]:.2f}" for head, key in (("P", "precision"), ("R", "recall")))
            shares += f"  F1 {100 * scores['f1']:.2f} (%), "
            counts = f"{scores['mined']:,} mined, {scores['gold']:,} gold pairs"
        else:
            shares, counts = "", f"{scores['mined']:,} pairs mined"
        lines.append(f"{name}  {shares}{counts}".strip())
    if "threshold" in result:
        lines.append(f"margin threshold {result['threshold']:.6f}, tuned on dev")
    if repeated := sum(scores.get("repeated", 0) for scores in sets.values()):
        lines.append(f"{repeated:,} sentences share their text with another of their side: none of them is paired")
    return "\n".join(lines)
