"""Retrieval of translations by the cosine of sentence vectors: what alignment is for, measured without training.

The task is that of Tatoeba (Artetxe and Schwenk, 2019): given a sentence, find its translation among all sentences of
the other language. XTREME (Hu et al., 2020) scores it as accuracy from English to the other language.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from ppa_fast.data.corpus import read_eval_pairs, standard_code
from ppa_fast.data.encode import TextEncoder, load_tokenizer, special_ids
from ppa_fast.errors import UserError
from ppa_fast.model.encoder import POOLINGS, load_encoder, max_sequence, sentence_vectors

BLOCK = 4096  # sentences a side: at most BLOCK² similarities are held, 64 MiB
MAX_TOKENS = 126
POOLING_FILE = "1_Pooling/config.json"


def _nearest(queries: Tensor, keys: Tensor) -> Tensor:
    """For each row of ``queries`` [N, H] the lowest number of its most similar row of ``keys`` [M, H]; int64 [N]."""
    found = []
    for block in queries.split(BLOCK):
        best = torch.full((len(block),), -torch.inf, device=block.device)
        index = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        for start in range(0, len(keys), BLOCK):
            similarity = block @ keys[start : start + BLOCK].T
            nearest = similarity.argmax(1)
            value = similarity.gather(1, nearest.unsqueeze(1)).squeeze(1)
            better = value > best
            best = torch.where(better, value, best)
            index = torch.where(better, nearest + start, index)
        found.append(index)
    return torch.cat(found)


def retrieval_scores(vectors_a: Tensor, vectors_b: Tensor) -> tuple[float, float]:
    """Precision at 1 from a to b and from b to a, shares in 0 … 1.

    ``vectors_a`` and ``vectors_b`` [N, H], row i of one the translation of row i of the other. From a to b it is the
    share of rows i with ``argmax_j cos(a_i, b_j) = i``; of equal cosines the lowest j counts. Memory beside the vectors
    is bounded by a constant.
    """
    a, b = F.normalize(vectors_a.float(), dim=1), F.normalize(vectors_b.float(), dim=1)
    own = torch.arange(len(a), device=a.device)
    return (_nearest(a, b) == own).double().mean().item(), (_nearest(b, a) == own).double().mean().item()


def _uniformity(unit: Tensor) -> float:
    """``log mean_{i≠j} exp(−2 ‖x_i − x_j‖²)`` of unit rows [N, H]."""
    total = 0.0
    for start in range(0, len(unit), BLOCK):
        block = unit[start : start + BLOCK]
        for other in range(0, len(unit), BLOCK):
            kernel = torch.exp(4 * (block @ unit[other : other + BLOCK].T).double() - 4)
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


def _is_english(language: str) -> bool:
    return standard_code(language).split("_")[0] == "en"


def summarise(pairs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result of an evaluation from its pairs' scores, ``{"en-de": {"a_to_b": …, "b_to_a": …, …}, …}``.

    Adds ``mean`` over all pairs and both directions, and ``english_to_foreign``: the mean over the pairs with English
    of the accuracy from English to the other language (XTREME's Tatoeba score), None without such a pair.
    """
    directions = [scores[way] for scores in pairs.values() for way in ("a_to_b", "b_to_a")]
    from_english = [
        scores["a_to_b" if _is_english(_languages(name)[0]) else "b_to_a"]
        for name, scores in pairs.items()
        if any(map(_is_english, _languages(name)))
    ]
    return {
        "pairs": pairs,
        "mean": fmean(directions),
        "english_to_foreign": fmean(from_english) if from_english else None,
    }


def stated_pooling(name_or_dir: str) -> str | None:
    """The pooling that a model states in sentence-transformers' ``1_Pooling/config.json``; None where it states none.

    Raises UserError where it states one that is neither "cls" nor "mean".
    """
    path = Path(name_or_dir) / POOLING_FILE
    if not Path(name_or_dir).is_dir():
        try:
            path = Path(hf_hub_download(name_or_dir, POOLING_FILE))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    # One key since sentence-transformers 6, before that a boolean for each pooling.
    modes = config.get("pooling_mode")
    if modes is None:
        flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        modes = [flags.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(f"{path}: states pooling {modes}; choose one of {', '.join(POOLINGS)} for the evaluation")
    return modes[0]


def evaluate_retrieval(
    model: str, pairs: Sequence[str], pooling: str | None = None, layer: int | None = None
) -> dict[str, Any]:
    """Retrieval precision at 1 of an encoder on parallel sentences, both directions.

    Args:
        model: name or folder of any Hugging Face encoder, with its tokenizer.
        pairs: evaluation sets such as ``en-de:dev.en,dev.de`` or ``en-fr:dev.tsv``, each language pair once.
        pooling: "cls" or "mean"; None is what the folder states (sentence-transformers' configuration), else "mean".
        layer: whose output is pooled; None the last, 0 the embeddings.

    A sentence is read up to 126 tokens (or the model's own limit) and its two specials. Runs on a GPU if there is one.
    Only the encoder is used: further modules that a sentence-transformers folder may have (Dense) are not.

    Returns:
        ``{"pairs": {"en-de": {"a_to_b": share, "b_to_a": share, "n": sentences}}, "mean": share,
        "english_to_foreign": share or None, "model": …, "pooling": …, "layer": …}``, see ``summarise``.

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

    encoder = load_encoder(model)
    tokenizer = load_tokenizer(model)
    special = special_ids(tokenizer)
    if special.vocab_size > encoder.config.vocab_size:
        raise UserError(
            f"{model}: the tokenizer has {special.vocab_size} tokens, the encoder {encoder.config.vocab_size}; "
            "expected the encoder's own tokenizer"
        )
    pooling = pooling or stated_pooling(model) or "mean"
    encode = TextEncoder(tokenizer, min(MAX_TOKENS, max_sequence(encoder.config) - 2))
    nn.Module.to(encoder, "cuda" if torch.cuda.is_available() else "cpu")

    scores: dict[str, dict[str, Any]] = {}
    for name, sides in texts.items():
        a, b = (
            sentence_vectors(encoder, encode(side), special, pooling, layer, progress=f"{name}: encoding {language}")
            for language, side in zip(_languages(name), sides, strict=True)
        )
        a_to_b, b_to_a = retrieval_scores(a, b)
        scores[name] = {"a_to_b": a_to_b, "b_to_a": b_to_a, "n": len(a)}
    return {**summarise(scores), "model": model, "pooling": pooling, "layer": layer}


def format_table(result: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """A text table of retrieval precision at 1 in per cent: a line for each language pair, a column for each direction.

    ``result`` is as from ``evaluate_retrieval``. With ``before``, another model's result on the same pairs, each
    direction has two columns.
    """
    english = all(any(map(_is_english, _languages(name))) for name in result["pairs"])

    def directions(name: str, scores: dict[str, float]) -> list[float]:
        """From English and to English where every pair has it, else from a to b and from b to a."""
        ways = [scores["a_to_b"], scores["b_to_a"]]
        return ways[::-1] if english and not _is_english(_languages(name)[0]) else ways

    table: dict[str, list[float]] = {}
    for name, scores in result["pairs"].items():
        columns = [directions(name, scores)]
        if before is not None:
            columns.insert(0, directions(name, before["pairs"][name]))
        table[name] = [share for way in zip(*columns, strict=True) for share in way]
    table["mean"] = [fmean(column) for column in zip(*table.values(), strict=True)]

    caption = "Retrieval precision@1 in %, nearest neighbour by cosine."
    if english:
        caption += " en→xx is XTREME's Tatoeba accuracy (English to foreign)."
    times = ["before", "after"] if before is not None else [""]
    heads = [f"{way} {time}".strip() for way in (["en→xx", "xx→en"] if english else ["a→b", "b→a"]) for time in times]
    width = max(map(len, ["pair", *table]))
    lines = [caption, "  ".join(["pair".ljust(width), *(head.rjust(12) for head in heads)])]
    for name, shares in table.items():
        lines.append("  ".join([name.ljust(width), *(f"{100 * share:.1f}".rjust(12) for share in shares)]))
    return "\n".join(lines)
