"""Mining of translations from two monolingual corpora, the task of BUCC (Zweigenbaum et al., 2018).

Follows Artetxe and Schwenk (2019) and XTREME: margin scores, greedy one-to-one matching, and a threshold tuned on one
set and applied to another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppa_fast.data.reading.languages import split_paths
from ppa_fast.data.reading.lines import text_lines
from ppa_fast.errors import UserError
from ppa_fast.files import output_file, write_text
from ppa_fast.settings import MiningSettings
from ppa_fast.tasks.evaluation import evaluation

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import Tensor

    from ppa_fast.tasks.embedder import Embedder

IdPair = tuple[str, str]


class Side(NamedTuple):
    """The sentences of one language: their ids and texts."""

    ids: list[str]
    texts: list[str]


class Corpus(NamedTuple):
    """Two sides, and the gold pairs of ids; None if unknown."""

    a: Side
    b: Side
    gold: set[IdPair] | None


def _columns(path: str | Path, expected: str, most: int = 2) -> list[tuple[int, list[str]]]:
    """The line numbers and columns of a TSV. Raises UserError unless each line has 2 to ``most`` non-empty columns."""
    rows = []
    for number, line in text_lines(path):
        columns = [column.strip() for column in line.split("\t")]
        if not 2 <= len(columns) <= most or not all(columns):
            raise UserError(f"{path}:{number}: found {line[:80]!r}, expected {expected}")
        rows.append((number, columns))
    return rows


def read_side(path: str | Path) -> Side:
    """Reads ``id<TAB>text`` lines; raises UserError for other lines, repeated ids, and an empty file."""
    rows = _columns(path, "id<TAB>text")
    first: dict[str, int] = {}
    for number, (id_, _) in rows:
        if first.setdefault(id_, number) != number:
            raise UserError(f"{path}:{number}: found id {id_!r} of line {first[id_]} again, expected unique ids")
    if not rows:
        raise UserError(f"{path}: found no sentences, expected lines id<TAB>text")
    return Side(list(first), [text for _, (_, text) in rows])


def read_pairs(path: str | Path, a: Side | None = None, b: Side | None = None) -> set[IdPair]:
    """Reads ``id<TAB>id`` lines with an optional third column, which is ignored. Repeated pairs count once.

    Raises UserError for other lines, and for ids that are not in ``a`` and ``b``, if given.
    """
    rows = _columns(path, "id<TAB>id", most=3)
    known = [set(side.ids) if side else None for side in (a, b)]
    for number, columns in rows:
        for id_, ids in zip(columns, known, strict=False):
            if ids is not None and id_ not in ids:
                raise UserError(f"{path}:{number}: found id {id_!r}, expected an id of the corpus")
    return {(columns[0], columns[1]) for _, columns in rows}


def read_gold(path: str | Path, a: Side | None = None, b: Side | None = None) -> set[IdPair]:
    """Reads gold pairs like ``read_pairs``; raises UserError also for a file without pairs."""
    gold = read_pairs(path, a, b)
    if not gold:
        raise UserError(f"{path}: found no pairs, expected lines id<TAB>id")
    return gold


def read_corpus(spec: str, flag: str, gold: bool) -> Corpus:
    """Reads ``SRC,TGT,GOLD``, or ``SRC,TGT`` if ``gold`` is False."""
    names = split_paths(spec, (3,) if gold else (3, 2))
    if not all(names) or len(names) not in ((3,) if gold else (2, 3)):
        raise UserError(f"{flag} {spec}: expected SRC,TGT,GOLD" + ("" if gold else " or SRC,TGT"))
    a, b = read_side(names[0]), read_side(names[1])
    return Corpus(a, b, read_gold(names[2], a, b) if len(names) == 3 else None)


def score_pairs(mined: set[IdPair], gold: set[IdPair]) -> dict[str, float]:
    """``{"precision": …, "recall": …, "f1": …}`` of mined pairs, as shares; F1 = 2 · correct / (mined + gold)."""
    correct = len(mined & gold)
    return {
        "precision": correct / len(mined) if mined else 0.0,
        "recall": correct / len(gold),
        "f1": 2 * correct / (len(mined) + len(gold)),
    }


def best_threshold(scores: NDArray[np.float64], correct: NDArray[np.bool_], gold: int) -> float:
    """The threshold with the highest F1, for candidates with descending ``scores`` [C] and gold marks ``correct`` [C].

    As in LASER, it is the midpoint between the last accepted score and the next one. Ties are resolved in favour of the
    highest threshold. ``gold``: the number of gold pairs.
    """
    f1 = 2 * correct.cumsum() / (np.arange(1, len(scores) + 1) + gold)
    following = np.append(scores[1:], scores[-1:] - 1)
    last = int(np.where(scores > following, f1, -1).argmax())  # equal scores are accepted together
    return float((scores[last] + scores[last + 1]) / 2) if last + 1 < len(scores) else float(scores[last])


def one_to_one(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Greedy one-to-one matching: the indices of candidates (a_i, b_i), best first, that share no sentence with a
    better candidate that is kept."""
    kept, seen_a, seen_b = [], set(), set()
    for number, (i, j) in enumerate(zip(a, b, strict=True)):
        if i not in seen_a and j not in seen_b:
            seen_a.add(i)
            seen_b.add(j)
            kept.append(number)
    return kept


def mine(a: Tensor, b: Tensor, progress: str | None = None) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Pairs of rows of ``a`` [N, H] and ``b`` [M, H] with their margins, best first, with each row in at most one pair.

    ``a`` and ``b`` are fp32 unit vectors on the same device. For each row of either side, the candidate is the one of
    its 4 nearest neighbours by cosine with the largest margin (ratio; see ``neighbours.margin``). For the memory see
    ``neighbours.nearest``.
    """
    import torch

    from ppa_fast.tasks.neighbours import MARGIN_NEIGHBOURS, best_by_margin, nearest

    forward, backward = nearest(a, b, MARGIN_NEIGHBOURS, progress)
    scores, found = zip(best_by_margin(forward, backward), best_by_margin(backward, forward), strict=True)
    rows = torch.cat([torch.arange(len(a), device=a.device), found[1]])
    columns = torch.cat([found[0], torch.arange(len(b), device=b.device)])
    ordered, order = torch.cat(scores).double().sort(descending=True, stable=True)
    pairs = (rows[order].tolist(), columns[order].tolist())
    kept = one_to_one(*pairs)
    return [pairs[0][n] for n in kept], [pairs[1][n] for n in kept], ordered.cpu().numpy()[kept]


def _mine_corpus(
    embedder: Embedder, corpus: Corpus, pooling: str, name: str
) -> tuple[list[IdPair], NDArray[np.float64], int]:
    """Pairs of ids with their margins, best first, and the number of sentences whose text occurs more than once.

    Equal texts count as one sentence in the neighbour search. Pairs with such a text are dropped, because its id is
    ambiguous (as in LASER's scoring).
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


@evaluation(MiningSettings)
def evaluate_mining(settings: MiningSettings) -> dict[str, Any]:
    """Precision, recall and F1 of translations mined by a model, or given in a file of pairs.

    Files have BUCC's format: ``id<TAB>text`` for each side, and ``id<TAB>id`` for gold pairs. The threshold is tuned on
    ``settings.dev`` and applied to ``settings.test``. A test set without gold pairs is mined but not scored.

    Returns:
        For files, ``{"precision": share, "recall": share, "f1": share, "mined": pairs, "gold": pairs}``. For a model,
        ``{"threshold": margin, "dev": {these keys, "sentences": [N, M], "repeated": n}, "test": {…} or None,
        "model": …, "pooling": …, "layer": …}`` and, on the top level, the three shares of the test set, or of dev
        without a test set. A test set without gold pairs has no shares.

    Vectors take ``4·H·(N + M)`` bytes (1.2 GB for 200,000 sentences per side of width 768); for additional memory see
    ``neighbours.nearest``. Raises UserError for unusable files and invalid options.
    """
    model, gold, predictions = settings.model, settings.gold, settings.predictions
    if gold is not None and predictions is not None:
        wanted, found = read_gold(gold), read_pairs(predictions)
        if not {a for a, _ in found} & {a for a, _ in wanted}:
            log.warning(f"{predictions}: no first id occurs as a first id in {gold}; check the order of the languages")
        return {**score_pairs(found, wanted), "mined": len(found), "gold": len(wanted)}
    out = None if settings.mined_out is None else output_file(settings.mined_out, "--mined-out")
    assert model is not None
    assert settings.dev is not None
    corpora = {"dev": read_corpus(settings.dev, "--dev", gold=True)}
    if settings.test:
        corpora["test"] = read_corpus(settings.test, "--test", gold=False)

    from ppa_fast.model.sentence_transformer import stated_pooling
    from ppa_fast.tasks.embedder import Embedder

    embedder = Embedder(model, settings.layer)
    pooling = settings.pooling or stated_pooling(model) or "mean"
    result, mined = score_corpora(embedder, pooling, corpora)
    if out:
        write_text(out, "".join(f"{a}\t{b}\t{margin:.6f}\n" for (a, b), margin in mined))
    return {**result, "model": model, "pooling": pooling, "layer": embedder.layer}


def score_corpora(
    embedder: Embedder, pooling: str, corpora: dict[str, Corpus]
) -> tuple[dict[str, Any], list[tuple[IdPair, float]]]:
    """Tunes the threshold on the corpus "dev", which has gold pairs, and applies it to the corpus "test", if given.

    Returns the result of ``evaluate_mining`` without ``model``, ``pooling`` and ``layer``, and the mined pairs of the
    last corpus with their margins, best first. Raises UserError for a corpus whose sentences all occur more than once.
    """
    result: dict[str, Any] = {"dev": None, "test": None}
    threshold = 0.0
    for name, corpus in corpora.items():
        pairs, margins, repeated = _mine_corpus(embedder, corpus, pooling, name)
        if not pairs:
            raise UserError(f"--{name}: found only repeated sentences, expected sentences with a unique id")
        if name == "dev" and corpus.gold is not None:
            correct = np.array([pair in corpus.gold for pair in pairs])
            threshold = best_threshold(margins, correct, len(corpus.gold))
        count = int((margins >= threshold).sum())
        scores: dict[str, Any] = {"mined": count, "sentences": [len(corpus.a.ids), len(corpus.b.ids)]}
        if corpus.gold is not None:
            scores = {**score_pairs(set(pairs[:count]), corpus.gold), "gold": len(corpus.gold), **scores}
        result[name] = {**scores, "repeated": repeated}
    last = result["test"] or result["dev"]
    top = {metric: last[metric] for metric in ("precision", "recall", "f1") if metric in last}
    return {**top, "threshold": threshold, **result}, list(zip(pairs[:count], margins[:count], strict=True))


def format_scores(result: dict[str, Any]) -> str:
    """The scores in per cent, one line per set."""
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
        lines.append(f"{repeated:,} sentences have the same text as another on their side and are not paired")
    return "\n".join(lines)
