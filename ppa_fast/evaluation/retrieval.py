"""Retrieval of translations by the cosine of sentence vectors: what alignment is for, measured without training.

The task is that of Tatoeba (Artetxe and Schwenk, 2019): given a sentence, find its translation among all sentences of
the other language. XTREME (Hu et al., 2020) scores it as accuracy from English to the other language.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.data.corpus import read_eval_pairs
from ppa_fast.data.languages import is_english
from ppa_fast.errors import UserError
from ppa_fast.evaluation import neighbours
from ppa_fast.evaluation.embedder import Embedder, stated_pooling
from ppa_fast.evaluation.neighbours import MARGIN_NEIGHBOURS, margin, nearest


def _share_found(found: Tensor) -> float:
    """The share of rows i with ``found[i] = i``, of int64 [N]."""
    return (found == torch.arange(len(found), device=found.device)).double().mean().item()


def retrieval_scores(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """Precision at 1 from a to b and from b to a, shares in 0 … 1.

    ``vectors_a`` and ``vectors_b`` [N, H], row i of one the translation of row i of the other. From a to b it is the
    share of rows i with ``argmax_j cos(a_i, b_j) = i``; of equal cosines the lowest j counts. Memory beside the vectors
    is bounded, see ``neighbours.nearest``.
    """
    a, b = F.normalize(vectors_a.float(), dim=1), F.normalize(vectors_b.float(), dim=1)
    forward, backward = nearest(a, b, 1)
    return _share_found(forward.index[:, 0]), _share_found(backward.index[:, 0])


def margin_retrieval_scores(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """As :func:`retrieval_scores`, by the margin criterion (ratio, 4 neighbours; Artetxe and Schwenk, 2019).

    What is found is, of the 4 nearest neighbours by cosine, the one of the largest margin (``neighbours.margin``).
    """
    a, b = F.normalize(vectors_a.float(), dim=1), F.normalize(vectors_b.float(), dim=1)
    forward, backward = nearest(a, b, MARGIN_NEIGHBOURS)
    ways = ((forward, backward), (backward, forward))
    found = [of.index.gather(1, margin(of, back).argmax(1, keepdim=True)).squeeze(1) for of, back in ways]
    return _share_found(found[0]), _share_found(found[1])


def _uniformity(unit: Tensor) -> float:
    """``log mean_{i≠j} exp(−2 ‖x_i − x_j‖²)`` of unit rows [N, H]."""
    total, size = 0.0, neighbours.BLOCK
    for start in range(0, len(unit), size):
        block = unit[start : start + size]
        for other in range(0, len(unit), size):
            kernel = torch.exp(4 * (block @ unit[other : other + size].T).double() - 4)
            if start == other:
                kernel.fill_diagonal_(0)
            total += kernel.sum().item()
    return torch.tensor(total / (len(unit) * (len(unit) - 1)), dtype=torch.float64).log().item()


def alignment_uniformity(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """Alignment and uniformity of translations (Wang and Isola, 2020, with α = 2 and t = 2); lower is better for both.

    ``vectors_a`` and ``vectors_b`` [N, H], row i of one the translation of row i of the other, are normalised first.
    Alignment is ``mean_i ‖a_i − b_i‖²``, between 0 and 4. Uniformity is ``log mean_{i≠j} exp(−2 ‖x_i − x_j‖²)`` of the
    a rows and of the b rows, averaged: 0 where all vectors of a language are one, about −4 where they are spread out.
    Raises UserError for fewer than two rows.
    """
    if len(vectors_a) < 2:
        raise UserError(f"uniformity: found {len(vectors_a)} sentences, expected at least 2")
    a, b = F.normalize(vectors_a.float(), dim=1), F.normalize(vectors_b.float(), dim=1)
    alignment = (a - b).double().square().sum(1).mean().item()
    return alignment, (_uniformity(a) + _uniformity(b)) / 2


def _languages(name: str) -> tuple[str, str]:
    a, b = name.split("-")
    return a, b


def summarise(pairs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result of an evaluation from its pairs' scores, ``{"en-de": {"a_to_b": …, "b_to_a": …, …}, …}``.

    Adds ``mean`` over all pairs and both directions, and ``english_to_foreign``: the mean over the pairs with English
    of the accuracy from English to the other language (XTREME's Tatoeba score), None without such a pair. Where the
    pairs have ``margin_a_to_b`` and ``margin_b_to_a``, ``margin_mean`` and ``margin_english_to_foreign`` likewise.
    """
    result: dict[str, Any] = {"pairs": pairs}
    criteria = [""] if any("margin_a_to_b" not in scores for scores in pairs.values()) else ["", "margin_"]
    for criterion in criteria:
        a_to_b, b_to_a = f"{criterion}a_to_b", f"{criterion}b_to_a"
        from_english = [
            scores[a_to_b if is_english(_languages(name)[0]) else b_to_a]
            for name, scores in pairs.items()
            if any(map(is_english, _languages(name)))
        ]
        result[f"{criterion}mean"] = fmean(scores[way] for scores in pairs.values() for way in (a_to_b, b_to_a))
        result[f"{criterion}english_to_foreign"] = fmean(from_english) if from_english else None
    return result


def evaluate_retrieval(
    model: str, pairs: Sequence[str], pooling: str | None = None, layer: int | None = None
) -> dict[str, Any]:
    """Retrieval precision at 1 of an encoder on parallel sentences, both directions, by cosine and by margin.

    Args:
        model: name or folder of any Hugging Face encoder, with its tokenizer (see ``embedder.Embedder``).
        pairs: evaluation sets such as ``en-de:dev.en,dev.de`` or ``en-fr:dev.tsv``, each language pair once.
        pooling: "cls" or "mean"; None is what the folder states (sentence-transformers' configuration), else "mean".
        layer: whose output is pooled; None the last, 0 the embeddings.

    A sentence is read up to 126 tokens (or the model's own limit) and its two specials. Runs on a GPU if there is one.

    Returns:
        ``{"pairs": {"en-de": {"a_to_b": share, "b_to_a": share, "margin_a_to_b": share, "margin_b_to_a": share,
        "n": sentences}}, "mean": share, "english_to_foreign": share or None, "margin_mean": share,
        "margin_english_to_foreign": share or None, "model": …, "pooling": …, "layer": …}``, see ``summarise``.

    Raises UserError for unusable files, a repeated language pair, a model or tokenizer that cannot be loaded, a layer
    or pooling that is not there.
    """
    texts: dict[str, tuple[list[str], list[str]]] = {}
    for spec in pairs:
        source, texts_a, texts_b = read_eval_pairs(spec)
        if source.name in texts:
            raise UserError(f"pairs: {source.name} is given twice; expected each language pair once")
        texts[source.name] = (texts_a, texts_b)
    if not texts:
        raise UserError("pairs: found none, expected at least one such as en-de:dev.en,dev.de")

    embedder = Embedder(model, layer)
    pooling = pooling or stated_pooling(model) or "mean"
    scores: dict[str, dict[str, Any]] = {}
    for name, sides in texts.items():
        a, b = (
            embedder.sentences(side, pooling, progress=f"{name}: encoding {language}").to(embedder.device)
            for language, side in zip(_languages(name), sides, strict=True)
        )
        a_to_b, b_to_a = retrieval_scores(a, b)
        margin_a_to_b, margin_b_to_a = margin_retrieval_scores(a, b)
        scores[name] = {
            "a_to_b": a_to_b,
            "b_to_a": b_to_a,
            "margin_a_to_b": margin_a_to_b,
            "margin_b_to_a": margin_b_to_a,
            "n": len(a),
        }
    return {**summarise(scores), "model": model, "pooling": pooling, "layer": layer}


def format_table(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """A text table of retrieval precision at 1 in per cent: a line for each language pair, a column for each direction.

    ``result`` is as from ``evaluate_retrieval``. With ``before``, another model's result on the same pairs, each
    direction has two columns; without, the margin criterion has its own, where the result has it.
    """
    english = all(any(map(is_english, _languages(name))) for name in result["pairs"])

    def directions(name: str, scores: dict[str, float], criterion: str = "") -> list[float]:
        """From English and to English where every pair has it, else from a to b and from b to a."""
        ways = [scores[f"{criterion}a_to_b"], scores[f"{criterion}b_to_a"]]
        return ways[::-1] if english and not is_english(_languages(name)[0]) else ways

    ways = ["en→xx", "xx→en"] if english else ["a→b", "b→a"]
    table: dict[str, list[float]] = {}
    if before is not None:
        heads = [f"{way} {time}" for way in ways for time in ("before", "after")]
        for name, scores in result["pairs"].items():
            columns = zip(directions(name, before["pairs"][name]), directions(name, scores), strict=True)
            table[name] = [share for way in columns for share in way]
    else:
        criteria = ["", "margin_"] if "margin_mean" in result else [""]
        heads = [f"{way} {'margin' if criterion else ''}".strip() for criterion in criteria for way in ways]
        for name, scores in result["pairs"].items():
            table[name] = [share for criterion in criteria for share in directions(name, scores, criterion)]
    table["mean"] = [fmean(column) for column in zip(*table.values(), strict=True)]

    caption = "Retrieval precision@1 in %, nearest neighbour by cosine."
    if english:
        caption += " en→xx is XTREME's Tatoeba accuracy (English to foreign)."
    width = max(map(len, ["pair", *table]))
    lines = [caption, "  ".join(["pair".ljust(width), *(head.rjust(12) for head in heads)])]
    for name, shares in table.items():
        lines.append("  ".join([name.ljust(width), *(f"{100 * share:.1f}".rjust(12) for share in shares)]))
    return "\n".join(lines)
