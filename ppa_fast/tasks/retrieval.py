"""Retrieval of translations by the cosine of sentence vectors, without task training.

The task is that of Tatoeba (Artetxe and Schwenk, 2019): given a sentence, find its translation among all sentences of
the other language. XTREME (Hu et al., 2020) scores it as accuracy from English to the other language.
"""

from __future__ import annotations

import logging
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppa_fast.data.reading.corpus import read_eval_pairs
from ppa_fast.data.reading.groups import comparison_form
from ppa_fast.data.reading.languages import is_english
from ppa_fast.errors import UserError
from ppa_fast.model.sentence_transformer import stated_pooling
from ppa_fast.settings import RetrievalSettings
from ppa_fast.tasks import neighbours
from ppa_fast.tasks.embedder import Embedder
from ppa_fast.tasks.evaluation import evaluation
from ppa_fast.tasks.neighbours import MARGIN_NEIGHBOURS, best_by_margin, nearest
from ppa_fast.tasks.tables import text_table

log = logging.getLogger(__name__)

DIRECTIONS = ("a_to_b", "b_to_a", "margin_a_to_b", "margin_b_to_a")


def _precision(vectors_a: Tensor, vectors_b: Tensor, k: int) -> tuple[float, float]:
    """The share of rows i that retrieve row i, in both directions: the largest margin among the k nearest."""
    a, b = F.normalize(vectors_a.float(), dim=1), F.normalize(vectors_b.float(), dim=1)
    forward, backward = nearest(a, b, k)
    shares = []
    for of, back in ((forward, backward), (backward, forward)):
        _, found = best_by_margin(of, back)
        shares.append((found == torch.arange(len(found), device=found.device)).double().mean().item())
    return shares[0], shares[1]


def retrieval_scores(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """Precision at 1 from a to b and from b to a, as shares between 0 and 1.

    ``vectors_a``, ``vectors_b``: [N, H]; rows with the same index are translations. From a to b it is the share of rows
    i with ``argmax_j cos(a_i, b_j) = i``; ties are resolved in favour of the lowest j. Additional memory is bounded;
    see ``neighbours.nearest``.
    """
    return _precision(vectors_a, vectors_b, 1)


def margin_retrieval_scores(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """Like :func:`retrieval_scores`, by the margin criterion (ratio, 4 neighbours; Artetxe and Schwenk, 2019).

    The retrieved sentence is the one of the 4 nearest neighbours by cosine with the largest ``neighbours.margin``.
    """
    return _precision(vectors_a, vectors_b, MARGIN_NEIGHBOURS)


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

    ``vectors_a``, ``vectors_b``: [N, H], normalized first; rows with the same index are translations. Alignment is
    ``mean_i ‖a_i − b_i‖²``, between 0 and 4. Uniformity is ``log mean_{i≠j} exp(−2 ‖x_i − x_j‖²)``, averaged over a and
    b. It is 0 if all vectors of a language are equal, and about −4 if they are spread out. Raises UserError for fewer
    than two rows.
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
    """The result of an evaluation, from the scores by pair: ``{"en-de": {"a_to_b": …, "b_to_a": …, …}, …}``.

    Adds ``mean`` over all pairs and both directions, and ``english_to_foreign``, the mean accuracy from English to the
    other language over pairs with English (XTREME's Tatoeba score; None without such a pair). If the pairs have
    ``margin_a_to_b`` and ``margin_b_to_a``, adds ``margin_mean`` and ``margin_english_to_foreign`` likewise.
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


def score_pair(embedder: Embedder, pooling: str, name: str, sides: tuple[list[str], list[str]]) -> dict[str, Any]:
    """The scores of a language pair such as "en-de", see ``evaluate_retrieval``; ``sides``: row-parallel sentences."""
    for language, side in zip(_languages(name), sides, strict=True):
        embedder.check_known(side, language)
        if repeated := len(side) - len(set(map(comparison_form, side))):
            log.warning(
                f"{name}: {repeated:,} of {len(side):,} {language} sentences repeat another: only the first of equal "
                "sentences can be retrieved"
            )
    a, b = (
        embedder.sentences(side, pooling, progress=f"{name}: encoding {language}").to(embedder.device)
        for language, side in zip(_languages(name), sides, strict=True)
    )
    shares = (*retrieval_scores(a, b), *margin_retrieval_scores(a, b))
    return {**dict(zip(DIRECTIONS, shares, strict=True)), "n": len(a)}


@evaluation(RetrievalSettings)
def evaluate_retrieval(settings: RetrievalSettings) -> dict[str, Any]:
    """Retrieval precision at 1 of an encoder on parallel sentences, both directions, by cosine and by margin.

    ``settings.model`` is a Hugging Face encoder with its tokenizer (see ``embedder.Embedder``). Sentences are truncated
    to 126 tokens (or the model's limit) without the two specials. Runs on a GPU if available.

    Returns:
        ``{"pairs": {"en-de": {"a_to_b": share, "b_to_a": share, "margin_a_to_b": share, "margin_b_to_a": share,
        "n": sentences}}, "mean": share, "english_to_foreign": share or None, "margin_mean": share,
        "margin_english_to_foreign": share or None, "model": …, "pooling": …, "layer": …}``, see ``summarise``.

    Warns of repeated sentences. Raises UserError for unusable files, sentences of mostly unknown tokens, a repeated
    language pair, a model or tokenizer that cannot be loaded, and an invalid layer or pooling.
    """
    texts: dict[str, tuple[list[str], list[str]]] = {}
    for spec in settings.pairs:
        source, texts_a, texts_b = read_eval_pairs(spec)
        if source.name in texts:
            raise UserError(f"pairs: found {source.name} twice, expected each language pair once")
        texts[source.name] = (texts_a, texts_b)

    model = settings.model
    embedder = Embedder(model, settings.layer)
    pooling = settings.pooling or stated_pooling(model) or "mean"
    scores = {name: score_pair(embedder, pooling, name, sides) for name, sides in texts.items()}
    return {**summarise(scores), "model": model, "pooling": pooling, "layer": embedder.layer}


def format_table(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """A text table of retrieval precision at 1 in per cent: a row per language pair, a column per direction, and ``n``.

    ``result``: the result of ``evaluate_retrieval``. With ``before``, another model's result on the same pairs, each
    direction has two columns. Without it, the margin criterion has columns of its own, if the result includes it.
    """
    english = all(any(map(is_english, _languages(name))) for name in result["pairs"])

    def directions(name: str, scores: dict[str, float], criterion: str = "") -> list[float]:
        """From English and to English if every pair has English, else from a to b and from b to a."""
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
    sizes = {name: scores["n"] for name, scores in result["pairs"].items()}
    sizes["mean"] = sum(sizes.values())
    rows = [[name, *(f"{100 * share:.1f}" for share in shares), f"{sizes[name]:,}"] for name, shares in table.items()]
    return f"{caption}\n{text_table(['pair', *heads, 'n'], rows)}"
