"""Scores of tags: accuracy, and precision, recall and F1 of entities by the rules of conlleval.

The CoNLL-2000 script conlleval (Tjong Kim Sang and Buchholz) defines entities in IOB1, IOB2 and IOBES tags, and also in
sequences that no scheme allows. seqeval follows it by default. Both score the entities of a corpus as one set.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from ppa_fast.errors import UserError

ACCURACY = ("accuracy",)
ENTITY_METRICS = ("f1", "precision", "recall")

_PREFIXED = re.compile(r"[BIES]-.")

Tags = Sequence[Sequence[str]]
"""The tags of sentences."""


def has_entities(tags: Collection[str]) -> bool:
    """Whether tags are entity tags (``B-``, ``I-``, ``E-`` or ``S-`` with a type, and ``O``), not parts of speech.

    Raises UserError for a mixture of both.
    """
    prefixed = sorted(tag for tag in tags if _PREFIXED.match(tag))
    others = sorted({*tags} - {*prefixed, "O"})
    if prefixed and others:
        raise UserError(
            f"tags: found {others[0]} together with {prefixed[0]}, expected either only entity tags (O, or B-, I-, "
            "E- or S- with a type) or no entity tags"
        )
    return bool(prefixed)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sentence as (type, first word, last word).

    A word belongs to the entity of the previous word if it has ``I`` or ``E``, the previous word has ``B`` or ``I``,
    and both have the same type. Every other word except ``O`` starts an entity, even ``I`` after ``O``.
    """
    found: list[tuple[str, int, int]] = []
    previous = "O"
    for place, tag in enumerate(tags):
        if tag[0] in "IE" and previous[0] in "BI" and tag[2:] == previous[2:]:
            found[-1] = (*found[-1][:2], place)
        elif tag != "O":
            found.append((tag[2:], place, place))
        previous = tag
    return found


def score_tags(gold: Tags, predicted: Tags, of_entities: bool) -> dict[str, Any]:
    """The scores of the tags of a corpus, as shares; ``gold`` and ``predicted`` have equal lengths.

    Returns ``{"f1", "precision", "recall", "entities": gold entities, "n": sentences}`` if ``of_entities``, else
    ``{"accuracy": share of words with the gold tag, "words": words, "n": sentences}``. Precision, recall and F1 are 0
    if their denominator is 0, as in conlleval.
    """
    if not of_entities:
        pairs = [(g, p) for both in zip(gold, predicted, strict=True) for g, p in zip(*both, strict=True)]
        return {"accuracy": sum(g == p for g, p in pairs) / len(pairs), "words": len(pairs), "n": len(gold)}
    wanted, found = (
        {(sentence, *entity) for sentence, tags in enumerate(each) for entity in entities(tags)}
        for each in (gold, predicted)
    )
    correct = len(wanted & found)
    return {
        "f1": 2 * correct / (len(wanted) + len(found)) if wanted or found else 0.0,
        "precision": correct / len(found) if found else 0.0,
        "recall": correct / len(wanted) if wanted else 0.0,
        "entities": len(wanted),
        "n": len(gold),
    }
