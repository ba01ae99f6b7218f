"""TMX: translation units (``tu``) of variants (``tuv``) in any number of languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lxml import etree

from ppa_fast.data.formats.xml import child, text_of, units
from ppa_fast.data.languages import best_match
from ppa_fast.data.source import Item, PairSource

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
INLINE = frozenset({"hi"})  # bpt, ept, it, ph and ut hold the codes of another format; sub is a text of its own


def read(source: PairSource) -> Iterator[Item]:
    """One item for each translation unit; a unit without text in one of the two languages is a drop.

    The variant of a language is the one with its very code, else the first of the same language (``en-US`` for ``en``).
    The score is the unit's property (``prop``) whose type is ``options.score_column``.
    """
    for record, unit in enumerate(units(source, "tmx", ["tu"]), 1):
        variants = list(unit.iterchildren("{*}tuv"))
        codes = [variant.get(LANGUAGE) or variant.get("lang") or "" for variant in variants]
        a, b = (_text(variants, best_match(code, codes)) for code in (source.a, source.b))
        yield source.translation(record, a, b, _property(unit, source.options.score_column))


def _text(variants: Sequence[etree._Element], index: int | None) -> str | None:
    segment = None if index is None else child(variants[index], "seg")
    return None if segment is None else text_of(segment, INLINE)


def _property(unit: etree._Element, name: str | None) -> str | None:
    if name is None:
        return None
    return next((prop.text for prop in unit.iter("{*}prop") if prop.get("type") == name), None)
