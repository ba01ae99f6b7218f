"""TMX: translation units (``tu``) with variants (``tuv``) in any number of languages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from lxml import etree

from ppa_fast.data.reading.formats.xml import LANGUAGE, child, text_of, units
from ppa_fast.data.reading.languages import best_match
from ppa_fast.data.reading.source import Item, PairSource

log = logging.getLogger(__name__)

INLINE = frozenset({"hi"})  # bpt, ept, it, ph and ut contain codes of another format; sub is a separate text


def read(source: PairSource) -> Iterator[Item]:
    """Yields one item for each translation unit; a unit without text in one of the two languages is a drop.

    :func:`best_match` selects the variant of each language. The score is the unit's property (``prop``) whose type is
    ``options.score_column``. A warning lists the codes of a file that lacks one of the languages.
    """
    seen: set[str] = set()
    absent = {source.a, source.b}
    for record, unit in enumerate(units(source, "tmx", ["tu"]), 1):
        variants = list(unit.iterchildren("{*}tuv"))
        codes = [variant.get(LANGUAGE) or variant.get("lang") or "" for variant in variants]
        matches = {code: best_match(code, codes) for code in (source.a, source.b)}
        if absent:
            seen.update(codes)
            absent -= {code for code, index in matches.items() if index is not None}
        a, b = (_text(variants, matches[code]) for code in (source.a, source.b))
        yield source.translation(record, a, b, _property(unit, source.options.score_column))
    for code in sorted(absent):
        log.warning(f"{source.paths[0]}: no text in {code}; the file has {', '.join(sorted(seen)) or 'no units'}")


def _text(variants: Sequence[etree._Element], index: int | None) -> str | None:
    if index is None:
        return None
    segment = child(variants[index], "seg")
    return text_of(variants[index] if segment is None else segment, INLINE)  # some tools write no seg


def _property(unit: etree._Element, name: str | None) -> str | None:
    if name is None:
        return None
    return next((prop.text for prop in unit.iter("{*}prop") if prop.get("type") == name), None)
